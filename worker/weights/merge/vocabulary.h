// The tokens of a checkpoint's tokenizer by id.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"

namespace marcoro {

class Vocabulary {
 public:
  // The file says for each id which token it is. INVALID_ARGUMENT naming `origin` if an id has no
  // token, or there are too many.
  static absl::StatusOr<Vocabulary> FromTokens(std::vector<std::string> tokens,
                                               const std::string& origin);

  // Tokens by id.
  const std::vector<std::string>& tokens() const { return tokens_; }
  // -1 if there is none. A token that stands there twice has the later id.
  int32_t Find(std::string_view token) const;

  // Without the ids from `size` on, for which a model has no rows.
  Vocabulary FirstTokens(size_t size) const;

 private:
  explicit Vocabulary(std::vector<std::string> tokens);

  std::vector<std::string> tokens_;
  std::unordered_map<std::string, int32_t> ids_;
};

// Reads directory/tokenizer.model (sentencepiece) with the tokens that tokenizer_config.json or
// added_tokens.json add to it; where there is none, tokenizer.json. NOT_FOUND without either,
// INVALID_ARGUMENT naming the file for anything malformed.
absl::StatusOr<Vocabulary> LoadVocabulary(const std::string& directory);

}  // namespace marcoro
