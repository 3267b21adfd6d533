#include "kernels/backend.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/backend_choice.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"

namespace marcoro {

absl::StatusOr<BackendChoice> ChooseBackend(const BackendOptions& options,
                                            const cpu::CpuFeatures& features) {
  if (options.threads < 1 || options.threads > kMaxBackendThreads) {
    return absl::InvalidArgumentError(absl::StrCat("backend threads must be 1 to ",
                                                   kMaxBackendThreads, ", not ", options.threads));
  }
  const std::string& name = options.name;
  constexpr std::string_view kNames[] = {"auto", "avx512", "avx2", "reference", "cuda"};
  if (std::find(std::begin(kNames), std::end(kNames), name) == std::end(kNames)) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown backend '", name, "': one of auto, avx512, avx2, reference, cuda"));
  }
  if (options.activations == DType::kF16) {
    return absl::InvalidArgumentError("activations must be bfloat16, float32 or E4M3");
  }
  if (options.activations == DType::kF32 && name != "reference") {
    return absl::InvalidArgumentError(absl::StrCat(
        "float32 activations need the backend 'reference'; '", name, "' computes in bfloat16"));
  }
  if (name == "reference") return BackendChoice::kReference;
  if (name == "cuda") return BackendChoice::kCuda;

  const std::string avx512_missing = cpu::MissingForAvx512(features);
  const std::string avx2_missing = cpu::MissingForAvx2(features);
  if (name == "avx512" && !avx512_missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("backend 'avx512': this processor lacks ", avx512_missing));
  }
  if (name == "avx2" && !avx2_missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("backend 'avx2': this processor lacks ", avx2_missing));
  }
  if (name != "avx2" && avx512_missing.empty()) return BackendChoice::kAvx512;
  if (avx2_missing.empty()) return BackendChoice::kAvx2;
  return BackendChoice::kReference;
}

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const BackendOptions& options) {
  const absl::StatusOr<BackendChoice> choice = ChooseBackend(options, cpu::DetectCpuFeatures());
  if (!choice.ok()) return choice.status();
  switch (*choice) {
    case BackendChoice::kAvx512:
      return cpu::MakeCpuBackend(cpu::InstructionSet::kAvx512, options.threads,
                                 options.activations);
    case BackendChoice::kAvx2:
      return cpu::MakeCpuBackend(cpu::InstructionSet::kAvx2, options.threads, options.activations);
    case BackendChoice::kCuda:
      return CreateCudaBackend(options);
    case BackendChoice::kReference:
      break;
  }
  return MakeReferenceBackend(options.activations);
}

}  // namespace marcoro
