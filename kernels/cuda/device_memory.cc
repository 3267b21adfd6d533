#include "kernels/cuda/device_memory.h"

namespace marcoro::cuda {

GrowingMemory::~GrowingMemory() { Free(); }

void GrowingMemory::Free() {
  if (data_ == nullptr) return;
  if (kind_ == MemoryKind::kDevice) {
    FreeDevice(data_);
  } else {
    FreePinned(data_);
  }
  data_ = nullptr;
  bytes_ = 0;
}

absl::Status GrowingMemory::Reserve(Stream stream, size_t bytes) {
  if (bytes <= bytes_) return absl::OkStatus();
  if (absl::Status status = Synchronize(stream); !status.ok()) return status;
  Free();
  auto memory = kind_ == MemoryKind::kDevice ? AllocateDevice(bytes) : AllocatePinned(bytes);
  if (!memory.ok()) return memory.status();
  data_ = *memory;
  bytes_ = bytes;
  return absl::OkStatus();
}

}  // namespace marcoro::cuda
