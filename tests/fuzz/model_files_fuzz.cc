// Input, with zero bytes between: config.json, generation_config.json and README.md, as the
// coordinator reads them.
#include "coordinator/api/model_files.h"
#include "tests/fuzz/input.h"

namespace marcoro {
namespace {

void CheckDefaults(const GenerationDefaults& defaults) {
  if (defaults.temperature) MARCORO_CHECK(*defaults.temperature >= 0);
  if (defaults.top_p) MARCORO_CHECK(*defaults.top_p > 0 && *defaults.top_p <= 1);
  if (defaults.min_p) MARCORO_CHECK(*defaults.min_p >= 0 && *defaults.min_p <= 1);
  if (defaults.typical_p) MARCORO_CHECK(*defaults.typical_p > 0 && *defaults.typical_p <= 1);
  if (defaults.repetition_penalty) MARCORO_CHECK(*defaults.repetition_penalty > 0);
}

}  // namespace

void FuzzOne(absl::string_view input) {
  static const InputFolder folder;
  const std::vector<std::string> parts = Parts(input, 3);
  folder.Set("config.json", parts[0]);
  folder.Set("generation_config.json", parts[1]);
  folder.Set("README.md", parts[2]);
  ReadLicense(folder.path());
  constexpr uint32_t kVocabulary = 1000;
  const auto generation = ReadGenerationConfig(folder.path(), kVocabulary);
  if (generation.ok()) {
    CheckDefaults(generation->defaults);
    for (const uint32_t id : generation->eos_ids) MARCORO_CHECK(id < kVocabulary);
  }
  const auto config = ReadModelConfig(folder.path());
  if (!config.ok()) return;
  MARCORO_CHECK(config->vocabulary_size > 0 && config->max_positions > 0);
  for (const uint32_t id : config->eos_ids) MARCORO_CHECK(id < config->vocabulary_size);
}

}  // namespace marcoro
