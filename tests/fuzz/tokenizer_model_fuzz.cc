// Input: a text to be encoded, a zero byte and a tokenizer.model.
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "tests/fuzz/input.h"

namespace marcoro {

void FuzzOne(absl::string_view input) {
  const std::vector<std::string> parts = Parts(input, 2);
  const auto tokenizer = Tokenizer::Create(parts[1], TokenizerConfig(), "tokenizer.model");
  if (!tokenizer.ok()) return;
  const auto ids = (*tokenizer)->Encode(parts[0]);
  if (!ids.ok()) return;
  for (const int32_t id : *ids) MARCORO_CHECK(id >= 0 && id < (*tokenizer)->size());
  MARCORO_CHECK(IsValidUtf8((*tokenizer)->Decode(*ids, /*skip_special=*/false)));
  for (int32_t id = -1; id <= (*tokenizer)->size(); ++id) {
    MARCORO_CHECK(IsValidUtf8((*tokenizer)->TokenText(id)));
  }
}

}  // namespace marcoro
