// Where neither CUDA nor the emulator is built.
#include <cstdio>

#include "tests/kernels/cuda/device_backends.h"

namespace marcoro {

std::vector<std::string> DeviceBackendNames() {
  std::fprintf(stderr, "not tested here: backend 'cuda': the emulator runs on one thread only\n");
  return {};
}

absl::StatusOr<std::unique_ptr<Backend>> MakeDeviceBackend(int, DType, bool) {
  return absl::FailedPreconditionError("no device backend in this build");
}

absl::StatusOr<std::unique_ptr<Backend>> MakeStagedDeviceBackend(int, DType activations) {
  return MakeDeviceBackend(1, activations);
}

bool DeviceIsEmulated() { return false; }

bool DeviceRunsModels() { return false; }

}  // namespace marcoro
