#include "deploy/cli/provide_model.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "deploy/cli/model_input.h"
#include "deploy/hub/hub_settings.h"
#include "deploy/hub/pull.h"
#include "worker/weights/hub_cache.h"
#include "worker/weights/merge/model_directory.h"
#include "worker/weights/merge/recipe.h"
#include "worker/weights/progress.h"

namespace marcoro {
namespace {

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// Every model that the recipe names.
std::vector<RecipeText> ModelsOf(const Recipe& recipe) {
  std::vector<RecipeText> models;
  for (const RecipeSlice& slice : recipe.slices) {
    for (const RecipeSource& source : slice.sources) models.push_back(source.model);
    if (slice.base_model) models.push_back(*slice.base_model);
  }
  if (recipe.base_model) models.push_back(*recipe.base_model);
  const std::string tokenizer = recipe.tokenizer_source ? recipe.tokenizer_source->text : "";
  if (!tokenizer.empty() && tokenizer != "base" && tokenizer != "union") {
    models.push_back(*recipe.tokenizer_source);
  }
  return models;
}

// From the cache if it is whole there, otherwise from the hub.
absl::StatusOr<std::string> FindOrPull(const std::string& hub_name, const PullSettings& settings) {
  absl::StatusOr<std::string> found = FindInHubCache(hub_name);
  if (!absl::IsNotFound(found.status())) return found;
  return PullToCache(hub_name, settings);
}

}  // namespace

absl::StatusOr<std::string> PullToCache(const std::string& hub_name, const PullSettings& settings) {
  const absl::StatusOr<HubName> name = ParseHubName(hub_name);
  if (!name.ok()) return name.status();
  const absl::StatusOr<HubSettings> hub = HubSettingsFromEnvironment();
  if (!hub.ok()) return hub.status();
  PullOptions options;
  options.jobs = settings.jobs;
  options.stall_timeout = settings.stall_timeout;
  ProgressReporter reporter(ProgressOptions::ForStderr("pulling " + name->ToString()));
  options.progress = [&reporter](uint64_t done, uint64_t total) { reporter.Update(done, total); };
  return PullModel(*hub, *name, options);
}

absl::StatusOr<std::vector<HubModel>> HubModelsOf(const std::string& path) {
  const absl::StatusOr<Recipe> recipe = LoadRecipe(path);
  if (!recipe.ok()) return recipe.status();
  std::vector<HubModel> models;
  for (const RecipeText& model : ModelsOf(*recipe)) {
    const absl::Status found = FindModelDirectory(model.text, path, HubLookup()).status();
    const bool known = std::any_of(models.begin(), models.end(),
                                   [&](const HubModel& other) { return other.name == model.text; });
    if (found.ok() || known) continue;
    const absl::Status place =
        ErrorAt(path, model.position, absl::StrCat("model ", Quoted(model.text)));
    models.push_back({model.text, std::string(place.message()), std::string(found.message())});
    if (ParseHubName(model.text).ok()) continue;
    return absl::Status(found.code(),
                        absl::StrCat(models.back().place, ": ", models.back().sought));
  }
  return models;
}

absl::Status HubModelError(const HubModel& model, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(model.place, ": ", model.sought,
                                                  "; and on the hub: ", status.message()));
}

absl::StatusOr<ProvidedModel> ProvideModel(const std::string& model, const PullSettings& settings) {
  ProvidedModel provided = {.path = model, .name = ""};
  if (Exists(model) && IsRecipe(model)) {
    const absl::StatusOr<std::vector<HubModel>> models = HubModelsOf(model);
    if (!models.ok()) return models.status();
    for (const HubModel& parent : *models) {
      const auto folder = FindOrPull(parent.name, settings);
      if (!folder.ok()) return HubModelError(parent, folder.status());
    }
    return provided;
  }
  const absl::StatusOr<HubName> name = ParseHubName(model);
  if (Exists(model) || IsRecipe(model) || !name.ok()) return provided;
  absl::StatusOr<std::string> folder = FindOrPull(model, settings);
  if (!folder.ok()) {
    return absl::Status(
        folder.status().code(),
        absl::StrCat("--model=", model, " is no folder here; ", folder.status().message()));
  }
  provided.path = *std::move(folder);
  provided.name = name->repository;
  return provided;
}

}  // namespace marcoro
