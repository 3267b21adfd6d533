// The model graph: one rank's share of a Mistral transformer, executed a step at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/collective/communicator.h"
#include "worker/model/config.h"
#include "worker/model/kv_cache.h"
#include "worker/model/parallel_linear.h"
#include "worker/model/parameters.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

// Bounds of one step; activation buffers are sized by them once.
struct StepBounds {
  int32_t tokens = 512;           // most new tokens in a step
  int32_t logit_rows = 256;       // most rows of logits in a step
  int32_t context_length = 4096;  // most positions of a sequence; also the length of the rope table
};

class Transformer {
 public:
  // Takes the parameters; backend and communicator must outlive the transformer. kv_blocks is the
  // size of the KV cache, kv_format how it holds keys and values.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(
      const ModelConfig& config, const Shard& shard, ModelParameters parameters,
      const StepBounds& bounds, int32_t kv_blocks, Backend& backend, Communicator& communicator,
      KvFormat kv_format = KvFormat::kActivation);

  // Executes the plan, whose sizes are within the bounds. On rank 0: logits (Σ logit_rows, V) F32,
  // in the plan's order and the backend's memory, valid until the next call; elsewhere an empty
  // tensor. Fails only when a collective does.
  absl::StatusOr<Tensor> Forward(const StepPlan& plan);

  const ModelConfig& config() const { return config_; }
  const StepBounds& bounds() const { return bounds_; }
  int32_t kv_blocks() const { return cache_.blocks(); }

  // Bytes of the backend's memory that Create takes besides parameters and KV cache.
  static size_t ActivationBytes(const ModelConfig& config, const Shard& shard,
                                const StepBounds& bounds, const Backend& backend);

 private:
  struct Activations;

  Transformer(const ModelConfig& config, const Shard& shard, ModelParameters parameters,
              const StepBounds& bounds, KvCache cache, Backend& backend,
              std::unique_ptr<Communicator> staged, Communicator& communicator,
              LinearProduct linear, VocabularyParallel lm_head);

  absl::Status Allocate();
  // Copies of what is made on the host, in the backend's memory.
  absl::Status UploadNorms();
  absl::Status UploadRopeTable();
  Activations ViewActivations(int64_t tokens) const;
  // What ops need to know of the plan.
  void CollectSpans(const StepPlan& plan);
  // The forward pass of a step, which may have padding; the logits are lm_head_'s.
  absl::Status Run(const StepInput& step);
  absl::Status ShareIds(const StepInput& step);
  absl::Status Layer(int index, const StepInput& step, const Activations& act);

  // Norms of a layer in the backend's memory, each (H).
  struct Norms {
    const float* attention = nullptr;
    const float* ffn = nullptr;
  };

  ModelConfig config_;
  Shard shard_;
  ModelParameters parameters_;
  StepBounds bounds_;
  KvCache cache_;
  Backend& backend_;
  std::unique_ptr<Communicator> staged_;  // the communicator where it cannot reach the memory
  Communicator& communicator_;
  LinearProduct linear_;
  VocabularyParallel lm_head_;
  AttentionShape attention_;
  std::vector<Norms> norms_;  // one for each layer, and the final norm as that of one more
  Tensor rope_;               // (context_length, D) F32: D/2 cosines, then D/2 sines
  std::vector<SequenceSpan> spans_;
  std::vector<int32_t> logit_rows_;  // rows of the step that need logits, in ascending order
  std::vector<Buffer> activations_;
  Buffer norm_storage_;
  Buffer rope_storage_;
  std::unique_ptr<StepRunner> steps_;  // of Run; last: what it repeats works in all of the above
};

}  // namespace marcoro
