// Whether a GPU's warpgroups (wgmma) can multiply E4M3 codes of all numbers of tokens: there is no
// document of their sums, so it is looked at.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/launch.h"

namespace marcoro::cuda {

// What a device was found to do. Until it has been probed: false; in the emulator: true, so that
// whole models run there as on sm_90a.
bool MultipliesCodesByWarpgroups(int device);

// Multiplies random matrices on this thread's device, `rounds` times each kind, by the kernels for
// few and for many tokens: no bit may depend on which it is. Where every order and precision gives
// the same sum, that has to be the one of mma.sync. From then on MultiplyQuantized multiplies by
// warpgroups if all of that held, by mma.sync otherwise. Returns which and why, in one line for the
// log. Takes some tens of milliseconds; before other threads multiply on that device.
absl::StatusOr<std::string> ProbeCodes(Stream stream, int rounds = 8);

}  // namespace marcoro::cuda
