// What a checkpoint's tokenizer_config.json (and the older files beside it) says about the
// tokenizer.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace marcoro {

// A token that is found in the text before sentencepiece sees it.
struct AddedToken {
  std::string content;
  bool lstrip = false;       // swallows the white space at its left
  bool rstrip = false;       // swallows the white space at its right
  bool single_word = false;  // is one only between spaces
  bool special = false;

  bool operator==(const AddedToken&) const = default;
};

struct TokenizerConfig {
  // How spacing works: legacy tokenizers put a space in front of every stretch of text between
  // special tokens, the others only in front of the whole text. Absent or null in the file: legacy,
  // as the reference takes it.
  bool legacy = true;
  bool add_bos = true;
  bool add_eos = false;
  bool add_prefix_space = true;  // non-legacy only

  // The named tokens' contents. bos and eos can be absent (null in the file).
  std::optional<std::string> bos_token = "<s>";
  std::optional<std::string> eos_token = "</s>";
  std::string unk_token = "<unk>";

  // Every named special token: bos, eos, unk, sep, pad, cls, mask and the additional ones, each
  // content once.
  std::vector<AddedToken> named_tokens = {{.content = "<s>", .special = true},
                                          {.content = "</s>", .special = true},
                                          {.content = "<unk>", .special = true}};
  // By id; the ids may lie in sentencepiece's vocabulary or beyond it.
  std::map<int32_t, AddedToken> added_tokens;

  // The Jinja text of the chat template; empty where there is none.
  std::string chat_template;

  static constexpr size_t kMaxAddedTokens = 1 << 16;
  static constexpr size_t kMaxAddedTokenBytes = 1024;
};

// Reads directory/tokenizer_config.json; chat_template.jinja takes precedence over the template in
// it, and, where it has no added_tokens_decoder, added tokens come from special_tokens_map.json,
// added_tokens.json and tokenizer.json. All of these files are optional: what none says has the
// defaults above. INVALID_ARGUMENT naming file and key for anything malformed.
absl::StatusOr<TokenizerConfig> LoadTokenizerConfig(const std::string& directory);

// The same from the text of a tokenizer_config.json alone; `file` is used in messages.
absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view json,
                                                     const std::string& file);

// The whole file. NOT_FOUND where there is none; INVALID_ARGUMENT when it is longer than max_bytes.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t max_bytes);

}  // namespace marcoro
