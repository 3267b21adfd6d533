// Input, with zero bytes between: tokenizer_config.json, added_tokens.json, tokenizer.json and
// tokenizer.model, as merging reads them.
#include "tests/fuzz/input.h"
#include "worker/weights/merge/vocabulary.h"

namespace marcoro {

void FuzzOne(absl::string_view input) {
  static const InputFolder folder;
  const std::vector<std::string> parts = Parts(input, 4);
  folder.Set("tokenizer_config.json", parts[0]);
  folder.Set("added_tokens.json", parts[1]);
  folder.Set("tokenizer.json", parts[2]);
  folder.Set("tokenizer.model", parts[3]);
  const auto vocabulary = LoadVocabulary(folder.path());
  if (!vocabulary.ok()) return;
  for (const std::string& token : vocabulary->tokens()) {
    const int32_t id = vocabulary->Find(token);
    MARCORO_CHECK(id >= 0 && vocabulary->tokens()[static_cast<size_t>(id)] == token);
  }
}

}  // namespace marcoro
