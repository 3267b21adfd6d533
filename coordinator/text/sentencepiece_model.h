// A sentencepiece BPE model: its pieces, and text to pieces. Standard types only, so that the tests
// can compare with the sentencepiece library, whose header brings an absl::string_view of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/token_kind.h"

namespace marcoro {

// Immutable; const members may be called from any number of threads.
class SentencePieceModel {
 public:
  // From the bytes of a tokenizer.model. add_dummy_prefix = false: encoding puts no space in front
  // of the text, whatever the model says. If the bytes are no model: nothing, and `error` says why.
  static std::unique_ptr<SentencePieceModel> Parse(std::string_view bytes, bool add_dummy_prefix,
                                                   std::string* error);
  ~SentencePieceModel();

  // At least 1.
  int32_t size() const;
  // What the piece writes: ▁ stands for a space, <0x41> for the byte 41. 0 <= id < size().
  std::string Bytes(int32_t id) const;
  // Never kNone. 0 <= id < size().
  TokenKind Kind(int32_t id) const;
  // The piece with exactly this text, or -1.
  int32_t Find(std::string_view piece) const;
  // What decoding does with the space in front of a text.
  LeadingSpace leading_space() const;

  // Appends the ids of the text, no special token among them unless the model has it as a
  // user-defined symbol. `text` is valid UTF-8. Takes n log n time.
  void Encode(std::string_view text, std::vector<int32_t>* ids) const;

 private:
  struct Parts;
  explicit SentencePieceModel(std::unique_ptr<Parts> parts);

  // The text as the model's pieces spell it: spaces cleaned up, escaped, and the one in front.
  std::string Spell(std::string_view text) const;

  std::unique_ptr<Parts> parts_;
};

}  // namespace marcoro
