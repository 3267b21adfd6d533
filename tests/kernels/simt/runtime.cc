// kernels/cuda/runtime.h over the emulator: device memory is the host's, and what is queued has
// happened when the call returns, unless its stream is captured.
#include "kernels/cuda/runtime.h"

#include <cstdlib>
#include <cstring>

#include "tests/kernels/simt/capture.h"
#include "tests/kernels/simt/runtime_faults.h"

namespace marcoro::simt {
namespace {

std::atomic<FailingCopies*> failing = nullptr;

}  // namespace

FailingCopies::FailingCopies(int first_to_fail) : left_(first_to_fail) { failing = this; }
FailingCopies::~FailingCopies() { failing = nullptr; }
FailingCopies* FailingCopies::current() { return failing; }

}  // namespace marcoro::simt

namespace marcoro::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kMemory = size_t{1} << 30;

absl::StatusOr<void*> Allocate(size_t bytes) {
  if (absl::Status status = simt::CheckNotCapturing("an allocation"); !status.ok()) return status;
  void* memory = nullptr;
  if (bytes > kMemory) return absl::ResourceExhaustedError("the emulated device has 1 GiB");
  // Exactly as many bytes as asked for, so that AddressSanitizer sees an access beyond them.
  if (posix_memalign(&memory, kAlignment, bytes) != 0) {
    return absl::ResourceExhaustedError("the emulated device has not enough memory");
  }
  std::memset(memory, 0, bytes);
  return memory;
}

void Free(void* memory) {
  simt::CheckNotCapturing("freeing memory").IgnoreError();  // it spoils the capture
  std::free(memory);
}

}  // namespace

absl::StatusOr<int> DeviceCount() { return 1; }
absl::Status UseDevice(int) { return absl::OkStatus(); }
void EnterDevice(int) {}

absl::StatusOr<DeviceProperties> Properties() {
  return DeviceProperties{.name = "emulated GPU",
                          .major = 9,
                          .minor = 0,
                          .multiprocessors = 4,
                          .total_memory = kMemory,
                          .free_memory = kMemory,
                          .driver = "emulated",
                          .runtime = "emulated"};
}

absl::StatusOr<void*> AllocateDevice(size_t bytes) { return Allocate(bytes); }
void FreeDevice(void* memory) { Free(memory); }
absl::StatusOr<void*> AllocatePinned(size_t bytes) { return Allocate(bytes); }
void FreePinned(void* memory) { Free(memory); }

absl::StatusOr<Stream> CreateStream() { return Stream{new simt::StreamState}; }
void DestroyStream(Stream stream) { delete stream.state; }

void CopyToDevice(Stream stream, void* device, const void* host, size_t bytes) {
  simt::FailingCopies* failing = simt::FailingCopies::current();
  if (failing != nullptr && failing->NextFails()) return;
  if (bytes == 0) return;
  simt::Queue(stream, [=] { std::memcpy(device, host, bytes); });
}
void CopyToHost(Stream stream, void* host, const void* device, size_t bytes) {
  if (bytes == 0) return;
  simt::Queue(stream, [=] { std::memcpy(host, device, bytes); });
}
void CopyRowsOnDevice(Stream stream, void* to, size_t to_stride, const void* from,
                      size_t from_stride, size_t row_bytes, size_t rows) {
  simt::Queue(stream, [=] {
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(static_cast<char*>(to) + row * to_stride,
                  static_cast<const char*>(from) + row * from_stride, row_bytes);
    }
  });
}
void Fill(Stream stream, void* device, int byte, size_t bytes) {
  if (bytes == 0) return;
  simt::Queue(stream, [=] { std::memset(device, byte, bytes); });
}

absl::Status Synchronize(Stream stream) {
  const simt::FailingCopies* failing = simt::FailingCopies::current();
  if (failing != nullptr && failing->failed()) {
    return absl::InternalError("the emulated device is lost");
  }
  return simt::CheckNotCaptured(stream, "waiting for the stream");
}

absl::Status CheckQueued() { return absl::OkStatus(); }

void* NativeStream(Stream) { return nullptr; }

absl::StatusOr<Event> CreateEvent() { return Event(); }
void DestroyEvent(Event) {}
void MarkEvent(Stream, Event) {}
absl::Status WaitForEvent(Event) { return absl::OkStatus(); }

}  // namespace marcoro::cuda
