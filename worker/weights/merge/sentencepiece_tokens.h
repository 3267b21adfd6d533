// Texts of the pieces of a sentencepiece model, by id.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace marcoro {

// From the bytes of a tokenizer.model (a ModelProto of google/sentencepiece: field 1, repeated, is
// a piece, whose field 1 is its text). INVALID_ARGUMENT naming `file` if they are none.
//
// The coordinator has a reader of its own for all that tokenizing needs; merging needs the names.
absl::StatusOr<std::vector<std::string>> ReadSentencePieceTokens(std::string_view bytes,
                                                                 const std::string& file);

}  // namespace marcoro
