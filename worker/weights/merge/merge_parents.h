// The checkpoints that a recipe names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/merge/model_directory.h"
#include "worker/weights/merge/recipe.h"

namespace marcoro {

struct MergeParent {
  MergeModel model;
  SourcePosition position;  // where the recipe names it first
  ModelConfig config;
  std::unique_ptr<CheckpointSource> tensors;  // null if only its tokenizer is used
};

class MergeParents {
 public:
  static constexpr size_t kMax = 64;

  MergeParents(std::string recipe_path, HubLookup find_in_hub)
      : recipe_path_(std::move(recipe_path)), find_in_hub_(std::move(find_in_hub)) {}

  // Index of the model of that name, whose folder and config.json are looked up the first time. Two
  // names of one folder are one model. INVALID_ARGUMENT, naming the recipe's place and what was
  // looked for or what is wrong, if there is no such model, or one that is not of the architecture.
  absl::StatusOr<int32_t> Find(const RecipeText& reference);

  // Opens the tensors of parent `index`, unless they are open: plain ones, or FP8 in any format
  // that CheckpointSource reads. Errors as of CheckpointSource::Open, naming the recipe's place.
  absl::Status OpenTensors(int32_t index);

  const MergeParent& at(int32_t index) const { return parents_[static_cast<size_t>(index)]; }
  int32_t size() const { return static_cast<int32_t>(parents_.size()); }

 private:
  const std::string recipe_path_;
  const HubLookup find_in_hub_;
  std::vector<MergeParent> parents_;
};

}  // namespace marcoro
