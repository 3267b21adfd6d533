// A model of one layer over the CUDA backend, its steps run by a StepRunner.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace marcoro {

// A sequence's next tokens, and all of its blocks.
struct MachineSequence {
  std::vector<int32_t> ids;
  int32_t position = 0;
  std::vector<int32_t> blocks;
};

struct StepMachineOptions {
  bool repeatable = true;
  bool graphs = true;
};

class StepMachine {
 public:
  static constexpr int kVocabulary = 70;
  static constexpr int kMostTokens = 24;
  static constexpr int kMostLogitRows = 20;
  static constexpr int kContext = 600;  // three splits of attention
  static constexpr int kBlocks = 60;

  // Ends the program if there is no device.
  explicit StepMachine(const StepMachineOptions& options);

  // The bits of a row of logits for each sequence's last token.
  absl::StatusOr<std::vector<uint32_t>> Step(const std::vector<MachineSequence>& sequences);
  // The whole KV cache.
  std::vector<uint8_t> Cache();
  // Makes the memory that ops work in larger: it moves.
  void MoveScratch();

  // How often the body was called.
  int bodies() const { return bodies_; }
  // Called in the body, before any op; its failure is the body's.
  std::function<absl::Status()> in_body = [] { return absl::OkStatus(); };
  Backend& backend() { return *backend_; }

 private:
  Buffer Make(size_t bytes);
  Tensor Activation(DType dtype, int64_t rows, int64_t columns);
  PackedWeight Weight(int64_t rows, int64_t columns, int segments, uint32_t seed);
  Buffer Random(DType dtype, int64_t rows, int64_t columns, uint32_t seed);
  StepLimits Limits(int64_t tokens) const;
  void Poison();
  absl::Status Body(const StepInput& step);

  const AttentionShape attention_ = {.heads = 4, .kv_heads = 2, .head_dim = 32, .window = 0};
  std::unique_ptr<Backend> backend_;
  int bodies_ = 0;
  std::vector<Buffer> parameters_;
  std::vector<Buffer> activations_;
  Tensor table_, rope_;
  const float* norm_ = nullptr;
  PackedWeight qkv_, output_, head_;
  KvCacheLayer cache_;
  // With room for the largest step.
  Tensor residual_, normed_, projected_, query_, attended_, delta_, selected_, logits_;
  std::vector<int32_t> ids_, logit_rows_;
  std::vector<SequenceSpan> spans_;
  std::unique_ptr<StepRunner> steps_;
};

}  // namespace marcoro
