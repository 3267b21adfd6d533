// What `merge` and `quantize` read: a checkpoint's folder, or a recipe that is merged while it is
// read.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

struct ModelInput {
  std::unique_ptr<TensorSource> source;
  ModelConfig config;
  std::string config_json;
  std::string tokenizer_directory;  // that has the files beside the weights
  std::string chat_template;        // Jinja, in place of those files' own; empty: theirs
  std::optional<MergePlan> merge;   // of a recipe
  std::string recipe_text;
};

// A small file of a written model.
struct ModelFile {
  std::string name;
  std::string contents;
};

// Whether the name is a recipe's: it ends in .yml or .yaml.
bool IsRecipe(const std::string& path);

// Opens a recipe, a folder, or a model of a hub by its name, which is downloaded if the cache does
// not have it, like the recipe's models. Errors as ProvideModel, PlanMerge, LoadModelConfig and the
// sources give them. Warnings go to the log.
absl::StatusOr<ModelInput> OpenModelInput(const std::string& model);

// Those of the usual tokenizer, generation and license files that the input has, with its chat
// template.
absl::StatusOr<std::vector<ModelFile>> ReadModelFiles(const ModelInput& input);

}  // namespace marcoro
