#include "kernels/cuda/runtime.h"

#include <cuda_runtime.h>

#include <cstdio>

#include "absl/strings/str_cat.h"

namespace marcoro::cuda {
namespace {

// 13000 is 13.0.
std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

std::string GibText(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GiB", static_cast<double>(bytes) / (size_t{1} << 30));
  return text;
}

// What a user can do about an error.
std::string Advice(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
      return "the GPU's memory is faulty: take the GPU out of service and reset it";
    case cudaErrorLaunchFailure:
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
      return "a kernel is wrong or the GPU is; the kernel log has the GPU's own report (Xid)";
    case cudaErrorLaunchOutOfResources:
    case cudaErrorInvalidConfiguration:
      return "this GPU cannot run a kernel of the shape it was given";
    case cudaErrorNoKernelImageForDevice:
      return "this program was built for other GPU architectures (CMAKE_CUDA_ARCHITECTURES)";
    case cudaErrorDevicesUnavailable:
      return "another process has the GPU to itself";
    default:
      return "the kernel log may say more";
  }
}

absl::Status ErrorStatus(cudaError_t error) {
  return absl::InternalError(absl::StrCat("GPU: ", cudaGetErrorName(error), " (",
                                          cudaGetErrorString(error), "): ", Advice(error)));
}

// An earlier call's failure (a launch that was refused, say) does not show in what is waited for.
absl::Status FirstFailure(cudaError_t before, cudaError_t waited) {
  if (before != cudaSuccess) return ErrorStatus(before);
  if (waited != cudaSuccess) return ErrorStatus(waited);
  return absl::OkStatus();
}

// Why there is no device to work with.
absl::Status NoDevice(cudaError_t error) {
  int driver = 0;
  int runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  (void)cudaGetLastError();
  if (driver == 0) {
    return absl::FailedPreconditionError(
        "no GPU: this machine has no NVIDIA driver, or a container hides it (--gpus=all)");
  }
  if (error == cudaErrorInsufficientDriver || driver < runtime / 1000 * 1000) {
    return absl::FailedPreconditionError(
        absl::StrCat("the NVIDIA driver is too old: it knows CUDA ", VersionText(driver),
                     ", this program needs ", VersionText(runtime), "; update the driver"));
  }
  if (error == cudaErrorNoDevice || error == cudaSuccess) {
    return absl::FailedPreconditionError(
        "no GPU: the driver sees none (is CUDA_VISIBLE_DEVICES set?)");
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "no GPU: ", cudaGetErrorName(error), " (", cudaGetErrorString(error), "): ", Advice(error)));
}

absl::Status NotEnough(size_t bytes, cudaError_t error) {
  (void)cudaGetLastError();
  if (error != cudaErrorMemoryAllocation) return ErrorStatus(error);
  size_t free = 0;
  size_t total = 0;
  if (const cudaError_t asked = cudaMemGetInfo(&free, &total); asked != cudaSuccess) {
    return ErrorStatus(asked);
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("GPU memory: needs ", GibText(bytes), ", ", GibText(free), " free",
                   bytes > free ? absl::StrCat(": missing ", GibText(bytes - free))
                                : std::string(", but not in one piece")));
}

}  // namespace

absl::StatusOr<int> DeviceCount() {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess || count == 0) return NoDevice(counted);
  return count;
}

absl::Status UseDevice(int index) {
  const absl::StatusOr<int> count = DeviceCount();
  if (!count.ok()) return count.status();
  if (index < 0 || index >= *count) {
    return absl::FailedPreconditionError(
        absl::StrCat("no GPU ", index, ": this process sees ", *count, ", numbered from 0"));
  }
  cudaError_t error = cudaSetDevice(index);
  // The first call that makes the driver work: what it refuses is known here, not in mid-load.
  if (error == cudaSuccess) error = cudaFree(nullptr);
  if (error != cudaSuccess) return NoDevice(error);
  return absl::OkStatus();
}

void EnterDevice(int index) { cudaSetDevice(index); }

absl::StatusOr<DeviceProperties> Properties() {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  cudaDeviceProp found;
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&found, device);
  DeviceProperties properties;
  if (error == cudaSuccess) {
    error = cudaMemGetInfo(&properties.free_memory, &properties.total_memory);
  }
  int driver = 0;
  int runtime = 0;
  if (error == cudaSuccess) error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&runtime);
  if (error != cudaSuccess) return ErrorStatus(error);
  properties.name = found.name;
  properties.major = found.major;
  properties.minor = found.minor;
  properties.multiprocessors = found.multiProcessorCount;
  properties.driver = VersionText(driver);
  properties.runtime = VersionText(runtime);
  return properties;
}

absl::StatusOr<void*> AllocateDevice(size_t bytes) {
  void* memory = nullptr;
  cudaError_t error = cudaMalloc(&memory, bytes == 0 ? 1 : bytes);
  if (error != cudaSuccess) return NotEnough(bytes, error);
  error = cudaMemset(memory, 0, bytes);
  // Not the whole device, a stream of which another thread may be capturing.
  if (error == cudaSuccess) error = cudaStreamSynchronize(nullptr);
  if (error == cudaSuccess) return memory;
  cudaFree(memory);
  return ErrorStatus(error);
}

void FreeDevice(void* memory) { cudaFree(memory); }

absl::StatusOr<void*> AllocatePinned(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, bytes == 0 ? 1 : bytes);
  if (error == cudaSuccess) return memory;
  (void)cudaGetLastError();
  if (error != cudaErrorMemoryAllocation) return ErrorStatus(error);
  return absl::ResourceExhaustedError(
      absl::StrCat("pinned memory of the host: ", GibText(bytes), " are not to be had"));
}

void FreePinned(void* memory) { cudaFreeHost(memory); }

absl::StatusOr<Stream> CreateStream() {
  Stream stream = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return ErrorStatus(error);
  return stream;
}

void DestroyStream(Stream stream) { cudaStreamDestroy(stream); }

// Failures stay with the runtime until Synchronize asks for them.
void CopyToDevice(Stream stream, void* device, const void* host, size_t bytes) {
  cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream);
}
void CopyToHost(Stream stream, void* host, const void* device, size_t bytes) {
  cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream);
}
void CopyRowsOnDevice(Stream stream, void* to, size_t to_stride, const void* from,
                      size_t from_stride, size_t row_bytes, size_t rows) {
  cudaMemcpy2DAsync(to, to_stride, from, from_stride, row_bytes, rows, cudaMemcpyDeviceToDevice,
                    stream);
}
void Fill(Stream stream, void* device, int byte, size_t bytes) {
  cudaMemsetAsync(device, byte, bytes, stream);
}

absl::StatusOr<Event> CreateEvent() {
  Event event = nullptr;
  const cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error != cudaSuccess) return ErrorStatus(error);
  return event;
}

void DestroyEvent(Event event) { cudaEventDestroy(event); }
void MarkEvent(Stream stream, Event event) { cudaEventRecord(event, stream); }

absl::Status WaitForEvent(Event event) {
  const cudaError_t before = cudaGetLastError();
  return FirstFailure(before, cudaEventSynchronize(event));
}

absl::Status Synchronize(Stream stream) {
  const cudaError_t before = cudaGetLastError();
  return FirstFailure(before, cudaStreamSynchronize(stream));
}

absl::Status CheckQueued() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? absl::OkStatus() : ErrorStatus(error);
}

void* NativeStream(Stream stream) { return stream; }

}  // namespace marcoro::cuda
