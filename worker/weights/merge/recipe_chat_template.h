// What a recipe's chat_template comes to.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/merge/recipe.h"

namespace marcoro {

// The Jinja text of the recipe's chat_template; empty if it has none. It may be that text itself;
// alpaca, chatml, mistral or llama2; or auto: what most of the models in `directories` have, the
// first of equals, and nothing if none has one. INVALID_ARGUMENT naming the place for anything
// else.
absl::StatusOr<std::string> RecipeChatTemplate(const Recipe& recipe,
                                               const std::vector<std::string>& directories);

}  // namespace marcoro
