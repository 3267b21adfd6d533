#include "deploy/cli/parallel_calls.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace marcoro {
namespace {

class FirstError {
 public:
  void Set(size_t index, const absl::Status& status) {
    const absl::MutexLock lock(&mutex_);
    if (!status_.ok() && index_ < index) return;
    index_ = index;
    status_ = status;
  }
  absl::Status Get() {
    const absl::MutexLock lock(&mutex_);
    return status_;
  }

 private:
  absl::Mutex mutex_;
  size_t index_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::Status CallInParallel(size_t count, int threads,
                            const std::function<absl::Status(size_t index)>& call) {
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  FirstError error;
  const auto work = [&] {
    for (size_t i = next++; i < count && !failed; i = next++) {
      const absl::Status status = call(i);
      if (status.ok()) continue;
      error.Set(i, status);
      failed = true;
    }
  };
  std::vector<std::thread> others;
  const size_t most = std::min(count, static_cast<size_t>(std::max(threads, 1)));
  for (size_t i = 1; i < most; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  return error.Get();
}

}  // namespace marcoro
