// Memory that the backend itself works in: it grows when more is asked for, and never in a step
// that was announced.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"

namespace marcoro::cuda {

enum class MemoryKind { kDevice, kPinned };

class GrowingMemory {
 public:
  explicit GrowingMemory(MemoryKind kind) : kind_(kind) {}
  ~GrowingMemory();
  GrowingMemory(const GrowingMemory&) = delete;
  GrowingMemory& operator=(const GrowingMemory&) = delete;

  // At least so many bytes, with unspecified contents if it had to grow. Nothing on the stream may
  // still use the memory when it grows: waits for the stream. RESOURCE_EXHAUSTED without memory.
  absl::Status Reserve(Stream stream, size_t bytes);

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void Free();

  const MemoryKind kind_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace marcoro::cuda
