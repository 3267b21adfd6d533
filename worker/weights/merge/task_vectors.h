// Methods that add task vectors to a base: base + λ Σ wᵢ·δᵢ, where δᵢ = inputᵢ - base may be
// thinned out first and reconciled where signs disagree. Every step is rounded to the type that the
// tensors have, as mergekit's tensors are.
#pragma once

#include <string_view>

#include "worker/weights/merge/merge_method.h"

namespace marcoro {

struct TaskVectorTraits {
  enum class Sparsity { kNone, kLargest, kRandom };

  std::string_view name;
  Sparsity sparsity = Sparsity::kNone;  // what stays of each δ where its density is below 1
  // Whether only those of the wᵢ·δᵢ are summed that have the sign of the sum of all.
  bool sign_consensus = false;
  bool normalize = false;  // by default: divide by the weights that were summed
  bool rescale = false;    // by default: what stays of a δ is scaled to the L1 norm of all of it
};

// A recipe gives: weight, density (each input but the base); normalize, rescale, lambda; int8_mask,
// which changes nothing here.
class TaskVectorMethod : public MergeMethod {
 public:
  explicit TaskVectorMethod(const TaskVectorTraits& traits);

  std::string_view name() const override { return traits_.name; }
  Base base() const override { return Base::kRequired; }
  std::span<const MergeMethodParameter> parameters() const override { return parameters_; }
  bool reads_whole_tensor(const TensorMerge& merge) const override;
  absl::StatusOr<std::unique_ptr<TensorMerger>> Prepare(const TensorMerge& merge, uint64_t seed,
                                                        const MergeInputs& inputs,
                                                        const ParallelFor& parallel) const override;

 private:
  const TaskVectorTraits traits_;
  const std::vector<MergeMethodParameter> parameters_;
};

}  // namespace marcoro
