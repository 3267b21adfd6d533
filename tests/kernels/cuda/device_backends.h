// Backends whose memory is not the program's own, for tests that run over all backends: "cuda" on a
// GPU where the build has CUDA, in the emulator where it has not. Which of them is decided by what
// is linked (see CMakeLists.txt).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace marcoro {

// {"cuda"}; empty where there is neither, said on stderr.
std::vector<std::string> DeviceBackendNames();

// The backend itself; nothing but "cuda" is known. `graphs` as BackendOptions::cuda_graphs.
absl::StatusOr<std::unique_ptr<Backend>> MakeDeviceBackend(int threads,
                                                           DType activations = DType::kBF16,
                                                           bool graphs = true);

// A stand-in for it that takes tensors, weights and caches in the program's own memory: each op
// copies all of them to the device, runs there, and copies them back, what lies between rows
// included.
absl::StatusOr<std::unique_ptr<Backend>> MakeStagedDeviceBackend(int threads,
                                                                 DType activations = DType::kBF16);

// Whether an op takes so long that tests of many sizes should take fewer: true in the emulator.
bool DeviceIsEmulated();

// Whether a whole model computes many tokens on it in seconds: not in an emulator with
// AddressSanitizer.
bool DeviceRunsModels();

}  // namespace marcoro
