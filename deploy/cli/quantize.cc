// marcoro quantize: a checkpoint in, the same in FP8 out, in a format that other servers load.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/model_input.h"
#include "deploy/cli/model_output.h"

namespace marcoro {
namespace {

FlagTable Flags(ModelOutputFlags* flags) {
  FlagTable table(
      "usage: marcoro quantize [flags] IN OUT\n\n"
      "Writes the model IN, a checkpoint's folder or a recipe, to the new folder OUT with FP8 "
      "linear weights: compressed-tensors' float-quantized format, one scale for each row, what "
      "`marcoro serve` makes of plain weights while loading. Embedding, lm_head and norms stay as "
      "they are. What has the name OUT is whole: until then it is OUT.partial, and if that is "
      "left by a killed run, the next one goes on from there.");
  AddModelOutputFlags(&table, flags);
  return table;
}

absl::Status Quantize(const std::string& in, const std::string& out,
                      const ModelOutputFlags& flags) {
  absl::StatusOr<ModelInput> input = OpenModelInput(in);
  if (!input.ok()) return input.status();
  absl::StatusOr<std::vector<ModelFile>> files = ReadModelFiles(*input);
  if (!files.ok()) return files.status();
  absl::StatusOr<std::string> config = Fp8ConfigJson(input->config_json, in);
  if (!config.ok()) return config.status();
  files->push_back({"config.json", *std::move(config)});
  return WriteModel(*input, ExportFormat::kFp8, *files, out, flags, "quantize");
}

}  // namespace

int QuantizeCommand(const std::vector<std::string>& arguments) {
  ModelOutputFlags flags;
  const CommandArguments parsed = ParseCommand("quantize", Flags(&flags), arguments, 2);
  if (parsed.exit_code) return *parsed.exit_code;
  if (parsed.positional.size() < 2) {
    return UsageError("quantize", "usage: marcoro quantize [flags] IN OUT");
  }
  LogToStderr("quantize");
  const absl::Status status = Quantize(parsed.positional[0], parsed.positional[1], flags);
  return status.ok() ? 0 : ModelFailure("quantize", status);
}

}  // namespace marcoro
