// marcoro pull: a model of a hub into this machine's cache.
#include <cstdio>
#include <string>
#include <vector>

#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/model_input.h"
#include "deploy/cli/model_output.h"
#include "deploy/cli/provide_model.h"

namespace marcoro {
namespace {

FlagTable Flags(PullSettings* settings) {
  FlagTable table(
      "usage: marcoro pull [flags] ORG/NAME[@REVISION] | RECIPE.yml\n\n"
      "Downloads a model's configuration, tokenizer and safetensors files from a hub into the "
      "cache "
      "that Hugging Face's\ntools share, checks them, and prints the folder: what `marcoro serve "
      "--model=ORG/NAME` serves. Of a recipe: the models\nthat it names and no folder provides. "
      "What is there is kept, what was begun is gone on with.\n\n"
      "HF_ENDPOINT, HF_TOKEN (or the file token in HF_HOME), HF_HUB_CACHE, HF_HOME and "
      "HF_HUB_OFFLINE mean what they mean\nto those tools. A token is sent to HF_ENDPOINT alone.");
  table.Add("jobs", &settings->jobs,
            {.value = "N", .help = "Files to download at a time.", .minimum = 1, .maximum = 64});
  table.Add("stall-timeout", &settings->stall_timeout,
            {.value = "DURATION",
             .help = "A download that brings nothing for so long is tried again.",
             .minimum = 1,
             .maximum = 3600});
  return table;
}

absl::Status Pull(const std::string& name, const PullSettings& settings) {
  const absl::StatusOr<std::string> folder = PullToCache(name, settings);
  if (folder.ok()) std::puts(folder->c_str());
  return folder.status();
}

absl::Status PullRecipe(const std::string& recipe, const PullSettings& settings) {
  const absl::StatusOr<std::vector<HubModel>> models = HubModelsOf(recipe);
  if (!models.ok()) return models.status();
  for (const HubModel& model : *models) {
    const absl::Status status = Pull(model.name, settings);
    if (!status.ok()) return HubModelError(model, status);
  }
  return absl::OkStatus();
}

}  // namespace

int PullCommand(const std::vector<std::string>& arguments) {
  PullSettings settings;
  const CommandArguments parsed = ParseCommand("pull", Flags(&settings), arguments, 1);
  if (parsed.exit_code) return *parsed.exit_code;
  if (parsed.positional.empty()) {
    return UsageError("pull", "which model? usage: marcoro pull ORG/NAME[@REVISION]");
  }
  LogToStderr("pull");
  const absl::Status status = IsRecipe(parsed.positional[0])
                                  ? PullRecipe(parsed.positional[0], settings)
                                  : Pull(parsed.positional[0], settings);
  return status.ok() ? 0 : Failure("pull", status);
}

}  // namespace marcoro
