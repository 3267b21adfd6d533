// A recipe's slices with their models looked up: which layers of which models are stacked.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/merge/merge_method.h"
#include "worker/weights/merge/merge_parents.h"
#include "worker/weights/merge/recipe.h"

namespace marcoro {

struct SliceInput {
  int32_t model = 0;                     // index into MergeParents
  int32_t first_layer = 0;               // of that model
  const RecipeSource* source = nullptr;  // null: the base, which was not listed
};

struct MergeSlice {
  const RecipeSlice* recipe = nullptr;
  std::vector<SliceInput> inputs;
  int32_t base = -1;   // index into inputs; -1: none
  int32_t layers = 0;  // of every input, and of the merged model
};

// Looks up the models, in the order in which the slices name them. Of `models`, a base that is not
// listed becomes the last input. INVALID_ARGUMENT naming the place for: models that MergeParents
// refuses; ranges beyond a model's layers, or of different lengths in a slice; a model twice in a
// slice; inputs that are too few or too many for the method, or lack the base that it needs; more
// than kMaxMergedLayers.
absl::StatusOr<std::vector<MergeSlice>> PlanSlices(const Recipe& recipe, const MergeMethod& method,
                                                   MergeParents& parents);

}  // namespace marcoro
