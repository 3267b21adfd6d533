// Text to token ids and back, as the Hugging Face LlamaTokenizer ("slow", transformers 4.57) and
// the sentencepiece library do it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/byte_range.h"
#include "coordinator/text/sentencepiece_model.h"
#include "coordinator/text/tokenizer_config.h"
#include "coordinator/text/vocabulary.h"

namespace marcoro {

struct EncodeOptions {
  // Unset: as the tokenizer is configured. Without effect where the tokenizer has no such token.
  std::optional<bool> add_bos = std::nullopt;
  std::optional<bool> add_eos = std::nullopt;
  // Whether </s>, <|im_end|> and the like, written in the text, become the tokens of that name.
  // Otherwise they are text.
  bool parse_special = true;
};

// Immutable once loaded; const members may be called from any number of threads.
class Tokenizer {
 public:
  // Longest text that Encode takes.
  static constexpr size_t kMaxTextBytes = 4 << 20;

  // Reads tokenizer.model and what LoadTokenizerConfig reads from the directory. NOT_FOUND without
  // a tokenizer.model, INVALID_ARGUMENT naming the file for one that is none or for a configuration
  // that does not go with it.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& directory);

  // The same from the bytes of a tokenizer.model; `file` is used in messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(absl::string_view model,
                                                           TokenizerConfig config,
                                                           const std::string& file);

  // INVALID_ARGUMENT, naming the file, if a token's id is no row of a model with this vocabulary. A
  // model may have more rows than there are tokens.
  absl::Status CheckVocabulary(int32_t vocabulary_size) const;

  // Bytes inside literal_ranges (in order, not overlapping, inside the text, at character borders)
  // are never part of a special token; apart from that the text is tokenized as one.
  // INVALID_ARGUMENT if it is not valid UTF-8 or longer than kMaxTextBytes.
  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options = {},
      absl::Span<const ByteRange> literal_ranges = {}) const;

  // What the Detokenizer makes of the whole sequence. Valid UTF-8.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special) const;

  // For a Detokenizer; lives as long as the tokenizer.
  const Vocabulary& vocabulary() const { return vocabulary_; }
  // One more than the highest token id.
  int32_t size() const { return vocabulary_.size(); }
  // What the token writes; part of a character for byte tokens. Empty for ids without a token.
  absl::string_view TokenBytes(int32_t id) const { return vocabulary_.bytes(id); }
  // The same as valid UTF-8: U+FFFD for a byte that is no character by itself.
  std::string TokenText(int32_t id) const;
  bool IsSpecial(int32_t id) const { return vocabulary_.kind(id) == TokenKind::kSpecial; }
  // The token that this text becomes as a special token, such as "<|im_end|>". Nothing where that
  // is plain text.
  std::optional<int32_t> FindSpecial(absl::string_view text) const;

  // Unset where the tokenizer has none.
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }
  // "<s>" and "</s>", for chat templates; empty where the tokenizer has none.
  const std::string& bos_text() const { return bos_text_; }
  const std::string& eos_text() const { return eos_text_; }
  bool add_bos() const { return config_.add_bos; }
  bool legacy() const { return config_.legacy; }
  // Jinja text from the checkpoint; empty where it has none.
  const std::string& chat_template() const { return config_.chat_template; }

 private:
  Tokenizer(std::unique_ptr<SentencePieceModel> model, TokenizerConfig config, std::string file);

  absl::Status Initialize();
  absl::Status CheckPieces() const;
  absl::Status ResolveSpecialTokens();
  void FillVocabulary();
  int32_t HighestId() const;
  // The id of a token by its text: an added token's or a piece's; -1 where there is none.
  int32_t FindToken(absl::string_view text) const;
  // Of sentencepiece's own; -1 where there is none.
  int32_t FindPiece(absl::string_view text) const;
  absl::Status EncodePieces(absl::string_view text, std::vector<int32_t>* ids) const;
  absl::Status EncodeText(absl::string_view text, std::vector<int32_t>* ids) const;
  absl::Status EncodeSegments(absl::string_view text, const EncodeOptions& options,
                              absl::Span<const ByteRange> literal_ranges,
                              std::vector<int32_t>* ids) const;

  std::string file_;
  TokenizerConfig config_;
  std::unique_ptr<SentencePieceModel> model_;
  AddedTokens added_;
  // Pieces whose text an added token has under another id. Special tokens are not among them: from
  // a piece, which may be anybody's text, none is made.
  absl::flat_hash_map<int32_t, int32_t> renamed_pieces_;
  std::vector<bool> named_special_;  // [id]: one of the configuration's named tokens
  Vocabulary vocabulary_;
  std::optional<int32_t> bos_id_;
  std::optional<int32_t> eos_id_;
  std::string bos_text_;
  std::string eos_text_;
  int32_t space_id_ = -1;           // the piece ▁
  size_t unknown_text_tokens_ = 0;  // how many tokens the text "<unk>" takes
};

}  // namespace marcoro
