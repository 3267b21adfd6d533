// The folder of a recipe's model without its weights: config.json, tokenizer and generation files.
// The coordinator, which knows nothing of recipes, is started on it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "deploy/cli/scratch_folder.h"

namespace marcoro {

// Errors as OpenModelInput and ScratchFolder::Create give them; UNAVAILABLE if nothing can be
// written there.
absl::StatusOr<std::unique_ptr<ScratchFolder>> MakeRecipeFolder(const std::string& recipe);

}  // namespace marcoro
