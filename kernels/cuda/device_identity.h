// Which kernels a GPU runs, and what it is.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/launch.h"

namespace marcoro::cuda {

struct DeviceIdentity {
  std::string name;  // of the kernel family: "cuda-sm_90a", or "cuda-emulated"
  // The same where activations are E4M3, whose products have bits of their own where they are those
  // of warpgroups: "cuda-sm_90a-wgmma".
  std::string quantized_name;
  std::string description;  // of that, the GPU, and how many tokens are multiplied; one line
};

// Of this thread's device, which is asked on the stream. Settles how many tokens (matmul_probe.h)
// and codes (matmul_codes_probe.h) are multiplied. INTERNAL if a kernel does not run there,
// RESOURCE_EXHAUSTED without memory.
absl::StatusOr<DeviceIdentity> Identify(Stream stream);

}  // namespace marcoro::cuda
