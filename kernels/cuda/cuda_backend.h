// The backend "cuda": the ops of kernels/backend.h over the launchers of ops.h, for one GPU.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace marcoro::cuda {

// `threads` are the host's, for ParallelFor. activations: kBF16 or kF8E4M3. FAILED_PRECONDITION, in
// one line that says what to do, if the GPU cannot be worked with. Threads other than the caller's
// may call what Backend allows concurrently, and nothing else.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device, int threads,
                                                         DType activations);

}  // namespace marcoro::cuda
