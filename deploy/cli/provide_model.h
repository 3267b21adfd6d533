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

// A model of a recipe that no folder provides, so that it must come from a hub.
struct HubModel {
  std::string name;
  std::string place;   // "recipe.yml:3:10: model 'org/name'", to begin messages about it
  std::string sought;  // where a folder was looked for, and what is there of a similar name
};

// Those of a recipe, each once. Errors as LoadRecipe gives them; NOT_FOUND for one that is neither
// in a folder nor a hub name.
absl::StatusOr<std::vector<HubModel>> HubModelsOf(const std::string& recipe);

// A failure to get it from the hub, told with where the recipe names it.
absl::Status HubModelError(const HubModel& model, const absl::Status& status);

struct ProvidedModel {
  std::string path;  // of a checkpoint's folder or a recipe
  std::string name;  // ORG/NAME if that is where it comes from; otherwise empty
};

// Makes a model ready to be opened: of a hub name, and of a recipe's models that are hub names,
// downloads those that the cache does not have whole. A path that exists is never looked for on a
// hub.
absl::StatusOr<ProvidedModel> ProvideModel(const std::string& model, const PullSettings& settings);

}  // namespace marcoro
