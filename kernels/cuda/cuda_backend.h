// The backend "cuda": the ops of kernels/backend.h over the launchers of ops.h, for one GPU.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace marcoro::cuda {

struct CudaBackendOptions {
  int threads = 1;                   // of the host, for ParallelFor
  DType activations = DType::kBF16;  // kBF16 or kF8E4M3
  bool graphs = true;                // as BackendOptions::cuda_graphs
};

// FAILED_PRECONDITION, in one line that says what to do, if the GPU cannot be worked with. Threads
// other than the caller's may call what Backend allows concurrently, and nothing else.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device,
                                                         const CudaBackendOptions& options);

}  // namespace marcoro::cuda
