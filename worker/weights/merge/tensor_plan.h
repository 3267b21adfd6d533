// The tensors of a merged model one by one: which stored tensors go into each, and with which
// numbers.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/weights/merge/merge_method.h"
#include "worker/weights/merge/merge_parents.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/merge/recipe.h"
#include "worker/weights/merge/slice_plan.h"
#include "worker/weights/merge/vocabulary_plan.h"

namespace marcoro {

struct PlannedTensors {
  std::vector<TensorMerge> tensors;
  std::vector<VocabularyMap> vocabularies;
};

// Every tensor of a model of that config, in the order of use. The embedding belongs to the first
// slice, the final norm and lm_head to the last; the gradients of their parameters stand at the
// start. The parents' tensors are open. INVALID_ARGUMENT naming the recipe's place for a parameter
// without a value, and for a parent's tensor that is missing, of another shape, or of a type that
// cannot be read.
absl::StatusOr<PlannedTensors> PlanTensors(const Recipe& recipe, const MergeMethod& method,
                                           const MergeParents& parents,
                                           const std::vector<MergeSlice>& slices,
                                           const VocabularyPlan& vocabulary,
                                           const ModelConfig& config);

}  // namespace marcoro
