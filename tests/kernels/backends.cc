#include "tests/kernels/backends.h"

#include <cstdio>
#include <cstdlib>

#include "tests/kernels/cuda/device_backends.h"

namespace marcoro {

std::vector<std::string> CpuBackendNames() {
  std::vector<std::string> names;
  for (const char* name : {"avx2", "avx512"}) {
    const auto backend = CreateBackend({.name = name});
    if (backend.ok()) {
      names.emplace_back(name);
    } else {
      std::fprintf(stderr, "not tested here: %s\n", backend.status().ToString().c_str());
    }
  }
  return names;
}

std::vector<std::string> FastBackendNames() {
  std::vector<std::string> names = CpuBackendNames();
  for (const std::string& name : DeviceBackendNames()) names.push_back(name);
  return names;
}

std::vector<std::string> AllBackendNames() {
  std::vector<std::string> names = FastBackendNames();
  names.emplace_back("reference");
  return names;
}

std::unique_ptr<Backend> MakeBackend(const std::string& name, int threads, DType activations) {
  auto backend =
      name == "cuda"
          ? MakeStagedDeviceBackend(threads, activations)
          : CreateBackend({.name = name, .threads = threads, .activations = activations});
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    std::abort();
  }
  return *std::move(backend);
}

}  // namespace marcoro
