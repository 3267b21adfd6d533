// What plans of products are made for on this thread's device.
#pragma once

#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/matmul_plan.h"

namespace marcoro::cuda {

// Without products of warpgroups, whose bits have to be looked at first (matmul_probe.h).
inline MatmulLimits DeviceMatmulLimits() {
  const DeviceLimits limits = LimitsOfDevice();
  return {.multiprocessors = limits.multiprocessors,
          .shared_bytes = limits.shared_bytes,
          .clusters = ClustersOfDevice()};
}

}  // namespace marcoro::cuda
