// What launches are sized by. No result depends on it.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul_plan.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

inline int CurrentDevice() { return 0; }

// Few multiprocessors, so that blocks that walk over their work do so in small tests too.
inline MatmulLimits DeviceMatmulLimits() {
  return {.multiprocessors = 4, .shared_bytes = 227 * 1024};
}

#else

// Of this thread.
inline int CurrentDevice() {
  int device = 0;
  cudaGetDevice(&device);
  return device;
}

// Of this thread's device; cheap.
inline MatmulLimits DeviceMatmulLimits() {
  MatmulLimits limits;
  const int device = CurrentDevice();
  cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return limits;
}

#endif

}  // namespace marcoro::cuda
