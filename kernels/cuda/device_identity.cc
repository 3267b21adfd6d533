#include "kernels/cuda/device_identity.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/matmul_codes_probe.h"
#include "kernels/cuda/matmul_probe.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"

namespace marcoro::cuda {
namespace {

// What the kernels that this GPU runs were compiled for: 900 is sm_90a, 0 the emulator.
absl::StatusOr<int> FindArchitecture(Stream stream) {
  auto memory = AllocateDevice(sizeof(int));
  if (!memory.ok()) return memory.status();
  int architecture = 0;
  Architecture(stream, static_cast<int*>(*memory));
  CopyToHost(stream, &architecture, *memory, sizeof(int));
  absl::Status status = Synchronize(stream);
  FreeDevice(*memory);
  if (!status.ok()) return status;
  return architecture;
}

}  // namespace

absl::StatusOr<DeviceIdentity> Identify(Stream stream) {
  const auto architecture = FindArchitecture(stream);
  if (!architecture.ok()) return architecture.status();
  constexpr char kEmulated[] = "cuda-emulated";
  // Nothing to find out there: the emulator's sums have the same bits in all ways.
  if (*architecture == 0) return DeviceIdentity{kEmulated, kEmulated, kEmulated};
  const auto properties = Properties();
  if (!properties.ok()) return properties.status();
  const auto matmul = ProbeMatmul(stream);
  if (!matmul.ok()) return matmul.status();
  const auto codes = ProbeCodes(stream);
  if (!codes.ok()) return codes.status();
  // From 9.0 on, the kernels use what only that architecture has.
  std::string name = absl::StrCat("cuda-sm_", *architecture / 10, *architecture >= 900 ? "a" : "");
  std::string description = absl::StrCat(
      name, ", ", properties->name, " (", properties->multiprocessors, " multiprocessors, ",
      properties->free_memory >> 20, " of ", properties->total_memory >> 20,
      " MiB free, driver for CUDA ", properties->driver, "); ", *matmul, "; ", *codes);
  std::string quantized_name =
      absl::StrCat(name, MultipliesCodesByWarpgroups(CurrentDevice()) ? "-wgmma" : "");
  return DeviceIdentity{std::move(name), std::move(quantized_name), std::move(description)};
}

}  // namespace marcoro::cuda
