// The ops of the CUDA backend at the shapes of a model, ready to be run and timed on a stream. Not
// through the backend, which copies each step's rows in between, and cannot sample.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/bench/model_shapes.h"
#include "kernels/bench/one_gpu_ranks.h"
#include "kernels/bench/workbench.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/step_upload.h"

namespace marcoro::cuda {

struct CudaWorkbenchOptions {
  ModelShapes shapes = {};
  // Weights, KV blocks: far more than the second-level cache holds.
  size_t cold_bytes = size_t{2} << 30;
  std::vector<int64_t> tokens = {1, 8, 32, 128, 512, 2048};
  std::vector<int32_t> batches = {1, 8, 32};
};

class CudaWorkbench {
 public:
  // Works on the stream. RESOURCE_EXHAUSTED without enough memory (about 5 GB as by default).
  static absl::StatusOr<std::unique_ptr<CudaWorkbench>> Create(Stream stream,
                                                               CudaWorkbenchOptions options);

  // All cases; they are valid as long as the workbench. A run is queued, not waited for.
  absl::StatusOr<std::vector<OpCase>> Cases();

  // The memory that weights and KV blocks lie in.
  const Buffer& cold() const { return cold_; }

 private:
  using Steps = std::vector<std::unique_ptr<StepUpload>>;

  CudaWorkbench(Stream stream, CudaWorkbenchOptions options);

  absl::Status Allocate();
  absl::Status FillCold();
  KvCacheLayer Cache() const;
  // A step of `batch` sequences of `tokens` tokens from `position` on, several times over other
  // blocks, so that the cache comes from memory.
  absl::StatusOr<std::shared_ptr<Steps>> MakeSteps(int32_t batch, int32_t tokens, int32_t position);

  void AddMatmuls();
  // Of activations of BF16, or of E4M3: those may come to twice the limit, which is that of BF16.
  void AddMatmuls(const NamedWeight& named, DType activations);
  absl::Status AddAttention();
  absl::Status AddStepOps();
  void AddRowOps();
  absl::Status AddSums();
  absl::Status AddSampling();

  Tensor Bf16(const Buffer& memory, int64_t rows, int64_t columns) const {
    return Tensor(memory.data(), DType::kBF16, rows, columns);
  }
  Tensor F32(const Buffer& memory, int64_t rows, int64_t columns) const {
    return Tensor(memory.data(), DType::kF32, rows, columns);
  }

  const Stream stream_;
  const CudaWorkbenchOptions options_;
  const ModelShapes& shapes_ = options_.shapes;
  Buffer cold_;
  Buffer scales_;
  Buffer activations_;  // BF16
  Buffer outputs_;      // BF16
  Buffer floats_;       // F32
  Buffer out_floats_;   // F32
  Buffer rope_;         // (context, head_dim) F32
  Buffer scratch_;
  Buffer summaries_;
  Buffer sampling_;  // sequences, then tokens, then slots
  std::vector<std::unique_ptr<OneGpuRanks>> groups_;
  std::vector<OpCase> cases_;
};

}  // namespace marcoro::cuda
