// Which kernel family CreateBackend takes for given options on a given processor.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/features.h"

namespace marcoro {

enum class BackendChoice { kReference, kAvx2, kAvx512 };

inline constexpr int kMaxBackendThreads = 1024;

// Errors as for CreateBackend.
absl::StatusOr<BackendChoice> ChooseBackend(const BackendOptions& options,
                                            const cpu::CpuFeatures& features);

}  // namespace marcoro
