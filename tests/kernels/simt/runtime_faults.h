// What an emulated device can be made to do wrong.
#pragma once

#include <atomic>

namespace marcoro::simt {

// While one lives, the copy to the device of that number (0 is the first from now on) and all
// behind it do not happen, as when the device is lost; Synchronize tells so from then on.
class FailingCopies {
 public:
  explicit FailingCopies(int first_to_fail);
  ~FailingCopies();
  FailingCopies(const FailingCopies&) = delete;
  FailingCopies& operator=(const FailingCopies&) = delete;

  // Notes a copy; whether it fails.
  bool NextFails() { return left_.fetch_sub(1) <= 0; }
  bool failed() const { return left_.load() < 0; }

  // Null where nothing fails.
  static FailingCopies* current();

 private:
  std::atomic<int> left_;
};

}  // namespace marcoro::simt
