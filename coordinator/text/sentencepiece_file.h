// The tokenizer.model format: a ModelProto of sentencepiece (google/sentencepiece,
// sentencepiece_model.proto).
//
// Read here, field by field, and not by the sentencepiece library: the library that distributions
// ship exports a second, older protobuf-lite, whose symbols displace those of the protobuf that
// gRPC uses, in the same process. The tests, which need no gRPC, compare with the library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace marcoro {

enum class PieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct SentencePieceFile {
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };
  std::vector<Piece> pieces;  // by id
  bool byte_fallback = false;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// INVALID_ARGUMENT if the bytes are no such model, or one that this project does not serve: another
// algorithm than BPE, a normalizer that rewrites characters (Mistral's and LLaMA's do not), spaces
// behind words.
absl::StatusOr<SentencePieceFile> ParseSentencePieceFile(absl::string_view bytes);

}  // namespace marcoro
