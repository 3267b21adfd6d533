// marcoro merge: a recipe in, the merged checkpoint out.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/model_card.h"
#include "deploy/cli/model_input.h"
#include "deploy/cli/model_output.h"

namespace marcoro {
namespace {

constexpr char kRecipeName[] = "mergekit_config.yml";  // where hubs look for it

FlagTable Flags(ModelOutputFlags* flags) {
  FlagTable table(
      "usage: marcoro merge [flags] RECIPE OUT\n\n"
      "Writes the merge that a recipe describes to the new folder OUT: weights, config.json, "
      "tokenizer files, the recipe and a model card. `marcoro serve --model RECIPE` serves the "
      "same without writing it. What has the name OUT is whole: until then it is OUT.partial, and "
      "if that is left by a killed run, the next one goes on from there.");
  AddModelOutputFlags(&table, flags);
  return table;
}

absl::Status Merge(const std::string& recipe, const std::string& out,
                   const ModelOutputFlags& flags) {
  absl::StatusOr<ModelInput> input = OpenModelInput(recipe);
  if (!input.ok()) return input.status();
  absl::StatusOr<std::vector<ModelFile>> files = ReadModelFiles(*input);
  if (!files.ok()) return files.status();
  files->push_back({"config.json", input->config_json});
  files->push_back({kRecipeName, input->recipe_text});
  files->push_back({"README.md", ModelCard(*input->merge, input->recipe_text, out)});
  return WriteModel(*input, ExportFormat::kPlain, *files, out, flags, "merge");
}

}  // namespace

int MergeCommand(const std::vector<std::string>& arguments) {
  ModelOutputFlags flags;
  const CommandArguments parsed = ParseCommand("merge", Flags(&flags), arguments, 2);
  if (parsed.exit_code) return *parsed.exit_code;
  if (parsed.positional.size() < 2) {
    return UsageError("merge", "usage: marcoro merge [flags] RECIPE OUT");
  }
  if (!IsRecipe(parsed.positional[0])) {
    return UsageError("merge", absl::StrCat("'", parsed.positional[0],
                                            "' is no recipe: its name ends in .yml or .yaml"));
  }
  LogToStderr("merge");
  const absl::Status status = Merge(parsed.positional[0], parsed.positional[1], flags);
  return status.ok() ? 0 : ModelFailure("merge", status);
}

}  // namespace marcoro
