// What launches are sized by. No result depends on it.
#pragma once

#include "kernels/cuda/launch.h"

namespace marcoro::cuda {

struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // most that a block may have
};

#ifdef MARCORO_SIMT

inline int CurrentDevice() { return 0; }

// Few multiprocessors, so that blocks that walk over their work do so in small tests too.
inline DeviceLimits LimitsOfDevice() { return {.multiprocessors = 4, .shared_bytes = 227 * 1024}; }

#else

// Of this thread.
inline int CurrentDevice() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

// Of this thread's device; cheap.
inline DeviceLimits LimitsOfDevice() {
  DeviceLimits limits;
  const int device = CurrentDevice();
  cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return limits;
}

#endif

}  // namespace marcoro::cuda
