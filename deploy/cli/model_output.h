// What `merge` and `quantize` have in common: their flags, and writing a model's folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "deploy/cli/model_input.h"
#include "deploy/flags/flag_table.h"
#include "worker/weights/checkpoint_export.h"

namespace marcoro {

struct ModelOutputFlags {
  std::string shard_size = "5GB";
  int32_t threads = 0;
};

void AddModelOutputFlags(FlagTable* table, ModelOutputFlags* flags);

// Writes the input's weights, and the files beside them, to a new folder; a bar on standard error
// tells how far it is. A line on standard output tells what was written. CANCELLED after Ctrl-C.
absl::Status WriteModel(ModelInput& input, ExportFormat format, const std::vector<ModelFile>& files,
                        const std::string& directory, const ModelOutputFlags& flags,
                        absl::string_view command);

// Tells a failure of WriteModel, or of what comes before it; returns the exit code, which after
// Ctrl-C is a shell's.
int ModelFailure(absl::string_view command, const absl::Status& status);

// Sends the log to standard error, as "marcoro COMMAND" says everything else.
void LogToStderr(absl::string_view command);

}  // namespace marcoro
