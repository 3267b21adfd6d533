// Small readers of a checkpoint's JSON files and model card.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/api/generation_defaults.h"

namespace marcoro {

struct ModelConfigFile {
  std::string architecture;
  uint32_t vocabulary_size = 0;
  uint32_t max_positions = 0;
  std::vector<uint32_t> eos_ids;
};

struct GenerationConfigFile {
  // Empty: the file names none.
  std::vector<uint32_t> eos_ids;
  GenerationDefaults defaults;
};

// Reads `directory`/config.json. NOT_FOUND without it; INVALID_ARGUMENT naming the field that is
// missing or out of range.
absl::StatusOr<ModelConfigFile> ReadModelConfig(const std::string& directory);

// Reads `directory`/generation_config.json; without it everything is unset. INVALID_ARGUMENT naming
// a field that is out of range.
absl::StatusOr<GenerationConfigFile> ReadGenerationConfig(const std::string& directory,
                                                          uint32_t vocabulary_size);

// The license that the front matter of `directory`/README.md names; empty if it names none.
std::string ReadLicense(const std::string& directory);

}  // namespace marcoro
