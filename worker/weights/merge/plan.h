// From a recipe to the plan of a merge.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/merge/model_directory.h"

namespace marcoro {

// Reads the recipe, its models' config.json and the headers of their safetensors; of tokenizers
// only with tokenizer_source, and no weights. Every tensor of the merged model is in the plan, and
// each of its inputs is there, of the right shape and of a type that can be read. NOT_FOUND if
// there is no such recipe. INVALID_ARGUMENT, naming file, line and column of the recipe and what is
// known or expected, for whatever does not fit: see ParseRecipe, MergeParents, PlanSlices,
// VocabularyPlan, EvaluateParameters. What is odd is in the plan's warnings.
//
// Of the merged folder, config.json is the plan's; generation_config.json goes with the tokenizer
// files of `tokenizer_model`.
absl::StatusOr<MergePlan> PlanMerge(const std::string& recipe_path,
                                    const HubLookup& find_in_hub = {});

}  // namespace marcoro
