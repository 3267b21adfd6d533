// Memory, streams and properties of the device: the calls of the CUDA runtime that host code makes.
// runtime.cc makes them on a GPU, tests/kernels/simt/runtime.cc in the emulator, whose device
// memory is the host's.
//
// What is queued on a stream happens after all that was queued there before. A failure of something
// queued, kernels included, is told by the next Synchronize of the same host thread; the device is
// then lost, and the process is expected to end.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/launch.h"

namespace marcoro::cuda {

struct DeviceProperties {
  std::string name;  // as its maker sells it
  int major = 0;     // compute capability
  int minor = 0;
  int multiprocessors = 0;
  size_t total_memory = 0;  // bytes
  size_t free_memory = 0;
  std::string driver;   // newest CUDA version that the driver knows, for example "13.0"
  std::string runtime;  // the CUDA version of this program
};

// At least 1. FAILED_PRECONDITION, in one line that says what to do: no GPU, no driver or one too
// old.
absl::StatusOr<int> DeviceCount();
// Makes device `index` the one that this thread works with. Fails as DeviceCount does, or for a
// device that is not there.
absl::Status UseDevice(int index);
// The same for a further thread, once UseDevice has found that the device works. Cheap.
void EnterDevice(int index);
// Of this thread's device.
absl::StatusOr<DeviceProperties> Properties();

// Device memory, zeroed, aligned to 256 bytes. RESOURCE_EXHAUSTED "needs X, Y free: missing Z".
absl::StatusOr<void*> AllocateDevice(size_t bytes);
void FreeDevice(void* memory);
// Memory of the host that copies can run beside the program from and to.
absl::StatusOr<void*> AllocatePinned(size_t bytes);
void FreePinned(void* memory);

absl::StatusOr<Stream> CreateStream();
void DestroyStream(Stream stream);

// Queued; host memory that is not pinned may be reused when CopyToDevice returns, pinned memory
// only after Synchronize. What CopyToHost wrote may be read after Synchronize.
void CopyToDevice(Stream stream, void* device, const void* host, size_t bytes);
void CopyToHost(Stream stream, void* host, const void* device, size_t bytes);
// Rows of row_bytes each that lie to_stride and from_stride bytes apart.
void CopyRowsOnDevice(Stream stream, void* to, size_t to_stride, const void* from,
                      size_t from_stride, size_t row_bytes, size_t rows);
// Every byte becomes `byte`.
void Fill(Stream stream, void* device, int byte, size_t bytes);

// Events are made once and marked again and again.
absl::StatusOr<Event> CreateEvent();
void DestroyEvent(Event event);
// The event is now behind all that has been queued.
void MarkEvent(Stream stream, Event event);
// Waits until all that was queued before the event was marked has happened; not at all if it never
// was. Fails as Synchronize does.
absl::Status WaitForEvent(Event event);

// Waits until all that was queued has happened. INTERNAL if something of it failed, with the
// error's name and what it means.
absl::Status Synchronize(Stream stream);

// Whether the runtime took what this thread asked it to queue since the last such call or
// Synchronize. Waits for nothing. Errors as of Synchronize.
absl::Status CheckQueued();

// The cudaStream_t; null in the emulator.
void* NativeStream(Stream stream);

}  // namespace marcoro::cuda
