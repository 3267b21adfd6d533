// How host code starts kernels. On a GPU a stream is CUDA's; in the emulator a launch runs the
// kernel to its end, or records it while its stream is captured (graph.h).
#pragma once

#include <functional>
#include <utility>

#include "kernels/cuda/device/platform.h"

#ifndef MARCORO_SIMT
#include <cuda_runtime.h>
#endif

namespace marcoro::cuda {

struct LaunchShape {
  int grid_x = 1;
  int grid_y = 1;
  int grid_z = 1;
  int threads = 32;        // of a block, a multiple of 32, at most 1024
  int shared_bytes = 0;    // of a block
  int cluster_blocks = 1;  // neighbouring blocks along x that run together (sm_90 and newer)
  // May start before the kernel ahead has ended, where kernels can (sm_90 and newer). Only for
  // kernels all of whose threads call WaitForKernelAhead (device/dependent_launch.h).
  bool overlaps_kernel_ahead = false;
};

#ifdef MARCORO_SIMT

using Stream = simt::Stream;
using Event = simt::StreamEvent;

// How many clusters of such a launch run at once; 0 where there are none.
template <typename... Parameters>
int MostClusters(void (*)(Parameters...), const LaunchShape& shape) {
  return 8 / shape.cluster_blocks;
}

template <typename... Parameters, typename... Arguments>
void Launch(Stream stream, const LaunchShape& shape, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  const simt::LaunchShape simt_shape = {.grid_x = shape.grid_x,
                                        .grid_y = shape.grid_y,
                                        .grid_z = shape.grid_z,
                                        .threads = shape.threads,
                                        .shared_bytes = shape.shared_bytes,
                                        .cluster_blocks = shape.cluster_blocks};
  // Copies: the launch may be recorded and run later.
  const std::function<void()> body = [kernel, ... copies = static_cast<Parameters>(arguments)] {
    kernel(copies...);
  };
  simt::Queue(stream, [simt_shape, body] { simt::Launch(simt_shape, body); });
}

#else

using Stream = cudaStream_t;
using Event = cudaEvent_t;  // a place in a stream

// Whether the device runs code of the kernel that was compiled for sm_90 or newer: in older code
// WaitForKernelAhead does nothing.
template <typename... Parameters>
bool CanWaitForKernelAhead(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
}

inline cudaLaunchAttribute ClusterOf(const LaunchShape& shape) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(shape.cluster_blocks);
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  return cluster;
}

template <typename... Parameters>
int MostClusters(void (*kernel)(Parameters...), const LaunchShape& shape) {
  if (!CanWaitForKernelAhead(kernel)) return 0;  // compiled for GPUs that have no clusters
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  cudaLaunchAttribute cluster = ClusterOf(shape);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.grid_x);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // no failure of what comes next
  return 0;
}

// What went wrong, if anything, is found by the device's next check (see device.h).
template <typename... Parameters, typename... Arguments>
void Launch(Stream stream, const LaunchShape& shape, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  if (shape.shared_bytes > 48 * 1024) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.grid_x, shape.grid_y, shape.grid_z);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (shape.cluster_blocks > 1) {
    attributes[config.numAttrs++] = ClusterOf(shape);
  }
  if (shape.overlaps_kernel_ahead && CanWaitForKernelAhead(kernel)) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

#endif

}  // namespace marcoro::cuda
