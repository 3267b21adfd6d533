// Input, with zero bytes between: tokenizer_config.json, special_tokens_map.json,
// added_tokens.json, tokenizer.json and a text to be encoded, beside the tokenizer.model of
// tests/data.
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "tests/fuzz/input.h"

namespace marcoro {

void FuzzOne(absl::string_view input) {
  static const InputFolder folder;
  static const std::string model = [] {
    const auto bytes = ReadTextFile(MARCORO_TEST_DATA "/tiny/tokenizer.model", 1 << 20);
    MARCORO_CHECK(bytes.ok());
    return *bytes;
  }();
  const std::vector<std::string> parts = Parts(input, 5);
  folder.Set("tokenizer_config.json", parts[0]);
  folder.Set("special_tokens_map.json", parts[1]);
  folder.Set("added_tokens.json", parts[2]);
  folder.Set("tokenizer.json", parts[3]);
  const auto config = LoadTokenizerConfig(folder.path());
  if (!config.ok()) return;
  const auto tokenizer = Tokenizer::Create(model, *config, "tokenizer.model");
  if (!tokenizer.ok()) return;
  const auto ids = (*tokenizer)->Encode(parts[4]);
  if (!ids.ok()) return;
  for (const int32_t id : *ids) MARCORO_CHECK(id >= 0 && id < (*tokenizer)->size());
  MARCORO_CHECK(IsValidUtf8((*tokenizer)->Decode(*ids, /*skip_special=*/false)));
}

}  // namespace marcoro
