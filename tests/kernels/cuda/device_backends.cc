#include "tests/kernels/cuda/device_backends.h"

#include <cstdio>
#include <utility>

#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/cuda/staged_backend.h"

namespace marcoro {

std::vector<std::string> DeviceBackendNames() {
  const auto backend = MakeDeviceBackend(1);
  if (backend.ok()) return {"cuda"};
  std::fprintf(stderr, "not tested here: %s\n", backend.status().ToString().c_str());
  return {};
}

absl::StatusOr<std::unique_ptr<Backend>> MakeDeviceBackend(int threads, DType activations,
                                                           bool graphs) {
  return cuda::MakeCudaBackend(
      /*device=*/0, {.threads = threads, .activations = activations, .graphs = graphs});
}

absl::StatusOr<std::unique_ptr<Backend>> MakeStagedDeviceBackend(int threads, DType activations) {
  auto backend = MakeDeviceBackend(threads, activations);
  if (!backend.ok()) return backend.status();
  return std::make_unique<StagedBackend>(*std::move(backend));
}

bool DeviceIsEmulated() {
  static const bool emulated = [] {
    const auto backend = MakeDeviceBackend(1);
    return backend.ok() && (*backend)->name() == "cuda-emulated";
  }();
  return emulated;
}

bool DeviceRunsModels() {
#ifdef __SANITIZE_ADDRESS__
  return !DeviceIsEmulated();
#else
  return !DeviceBackendNames().empty();
#endif
}

}  // namespace marcoro
