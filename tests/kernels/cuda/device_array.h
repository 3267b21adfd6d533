// Device memory for tests of launchers. It starts as 0xff everywhere, which is NaN in every type,
// so that a read of something that was never written shows in the result. A failure of the device
// ends the test program.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/runtime.h"

namespace marcoro::cuda {

inline void CheckDevice(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

// The stream that tests launch on.
inline Stream TestStream() {
  static const Stream stream = [] {
    CheckDevice(UseDevice(0));
    auto created = CreateStream();
    CheckDevice(created.status());
    return *created;
  }();
  return stream;
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    TestStream();
    auto memory = AllocateDevice(bytes());
    CheckDevice(memory.status());
    data_ = static_cast<T*>(*memory);
    Poison();
  }
  explicit DeviceArray(absl::Span<const T> values) : DeviceArray(values.size()) {
    CopyFrom(values);
  }
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() {
    if (data_ != nullptr) FreeDevice(data_);
  }

  T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

  // The first elements; the others stay as they are.
  void CopyFrom(absl::Span<const T> values) {
    if (values.size() > count_) std::abort();
    CopyToDevice(TestStream(), data_, values.data(), values.size() * sizeof(T));
    CheckDevice(Synchronize(TestStream()));
  }
  // Waits for what was launched on TestStream.
  std::vector<T> ToHost() const {
    std::vector<T> values(count_);
    CopyToHost(TestStream(), values.data(), data_, bytes());
    CheckDevice(Synchronize(TestStream()));
    return values;
  }
  void Poison() {
    Fill(TestStream(), data_, 0xff, bytes());
    CheckDevice(Synchronize(TestStream()));
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

}  // namespace marcoro::cuda
