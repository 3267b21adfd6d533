// What commands take as --model: a folder, a recipe, or the name of a model on a hub.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace marcoro {

struct PullSettings {
  int32_t jobs = 4;                                  // files at a time
  absl::Duration stall_timeout = absl::Seconds(30);  // without a byte
};

// Downloads what is missing of a model of a hub, showing a progress bar on standard error, and
// returns its folder. The hub is asked even if the cache has the model: its branch may have moved.
absl::StatusOr<std::string> PullToCache(const std::string& hub_name, const PullSettings& settings);

// The models of a recipe that no folder provides, so that they must come from a hub; each once.
// Errors as LoadRecipe gives them; NOT_FOUND for one that is neither in a folder nor a hub name.
absl::StatusOr<std::vector<std::string>> HubModelsOf(const std::string& recipe);

struct ProvidedModel {
  std::string path;  // of a checkpoint's folder or a recipe
  std::string name;  // ORG/NAME if that is where it comes from; otherwise empty
};

// Makes a model ready to be opened: of a hub name, and of a recipe's models that are hub names,
// downloads those that the cache does not have whole. A path that exists is never looked for on a
// hub.
absl::StatusOr<ProvidedModel> ProvideModel(const std::string& model, const PullSettings& settings);

}  // namespace marcoro
