// Whether a GPU's products of warpgroups (wgmma) have the bits of those of warps (mma.sync). Both
// add up 16 products and a sum in an order, and with a precision, that no document tells. One
// token's product comes from mma.sync always, so many tokens' may come from wgmma only where no bit
// of it differs: then the choice is no part of what a result depends on.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/launch.h"

namespace marcoro::cuda {

// Whether the program holds kernels with wgmma for this thread's device.
absl::StatusOr<bool> HasWarpgroups(Stream stream);

// What a device was found to do. Until it has been probed: false.
bool MultipliesByWarpgroups(int device);

// Multiplies random matrices in both ways on this thread's device, `rounds` times each kind (of
// magnitudes, of cancellation, subnormal numbers), and compares. From then on Matmul multiplies
// more than 8 tokens by warpgroups if all bits were equal, by warps otherwise. Returns which and
// why, in one line for the log. Takes some tens of milliseconds; before other threads multiply on
// that device.
absl::StatusOr<std::string> ProbeMatmul(Stream stream, int rounds = 8);

}  // namespace marcoro::cuda
