// From a model's name in a recipe to the folder of its checkpoint.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace marcoro {

// The folder of a model that has been downloaded from a hub; NOT_FOUND if it has not.
using HubLookup = std::function<absl::StatusOr<std::string>(const std::string& name)>;

// The first folder with a config.json among: the recipe's folder / name, that folder's parent /
// name, the working folder / name (of an absolute name: the name alone), and what find_in_hub says,
// unless it is empty. NOT_FOUND otherwise, saying where was looked and which folder has a name like
// it.
absl::StatusOr<std::string> FindModelDirectory(const std::string& name,
                                               const std::string& recipe_path,
                                               const HubLookup& find_in_hub);

}  // namespace marcoro
