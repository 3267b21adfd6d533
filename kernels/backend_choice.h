// Which kernel family CreateBackend takes for given options on a given processor.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/features.h"

namespace marcoro {

enum class BackendChoice { kReference, kAvx2, kAvx512, kCuda };

inline constexpr int kMaxBackendThreads = 1024;

// Errors as for CreateBackend.
absl::StatusOr<BackendChoice> ChooseBackend(const BackendOptions& options,
                                            const cpu::CpuFeatures& features);

// The backend "cuda", or FAILED_PRECONDITION in a program that was built without it (with_cuda.cc,
// without_cuda.cc).
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const BackendOptions& options);

}  // namespace marcoro
