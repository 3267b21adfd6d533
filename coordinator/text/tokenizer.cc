#include "coordinator/text/tokenizer.h"

#include <grpc/support/log.h>

#include <algorithm>
#include <string_view>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/utf8.h"

namespace marcoro {
namespace {

constexpr absl::string_view kSpaceSymbol = "\xe2\x96\x81";  // ▁
constexpr size_t kMaxModelBytes = 256 << 20;

struct RangedText {
  std::string text;
  std::vector<ByteRange> literal_ranges;
};

// What non-legacy tokenizers do to a whole text before anything else: ▁ is a space, and one ▁ goes
// in front. The ranges move along.
RangedText NormalizeSpaces(absl::string_view text, absl::Span<const ByteRange> literal_ranges,
                           bool add_prefix_space) {
  RangedText normal;
  normal.text.reserve(text.size() + kSpaceSymbol.size());
  if (add_prefix_space) normal.text.append(kSpaceSymbol.data(), kSpaceSymbol.size());
  size_t copied = 0;
  const auto copy_to = [&](size_t end) {
    while (copied < end) {
      const size_t symbol = std::min(text.substr(0, end).find(kSpaceSymbol, copied), end);
      normal.text.append(text.data() + copied, symbol - copied);
      copied = symbol;
      if (symbol < end) {
        normal.text.push_back(' ');
        copied += kSpaceSymbol.size();
      }
    }
    return normal.text.size();
  };
  normal.literal_ranges.reserve(literal_ranges.size());
  for (const ByteRange& range : literal_ranges) {
    const size_t begin = copy_to(range.begin);
    normal.literal_ranges.push_back({begin, copy_to(range.end)});
  }
  copy_to(text.size());
  return normal;
}

bool InOrder(absl::Span<const ByteRange> ranges, size_t size) {
  size_t end = 0;
  for (const ByteRange& range : ranges) {
    if (range.begin < end || range.end < range.begin) return false;
    end = range.end;
  }
  return end <= size;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& directory) {
  const std::string file = absl::StrCat(directory, "/tokenizer.model");
  absl::StatusOr<std::string> model = ReadTextFile(file, kMaxModelBytes);
  if (!model.ok()) return model.status();
  absl::StatusOr<TokenizerConfig> config = LoadTokenizerConfig(directory);
  if (!config.ok()) return config.status();
  return Create(*model, *std::move(config), file);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(absl::string_view model,
                                                             TokenizerConfig config,
                                                             const std::string& file) {
  std::string error;
  std::unique_ptr<SentencePieceModel> pieces =
      SentencePieceModel::Parse(std::string_view(model.data(), model.size()),
                                /*add_dummy_prefix=*/config.legacy, &error);
  if (pieces == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": is not a sentencepiece model: ", SanitizeUtf8(error)));
  }
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(std::move(pieces), std::move(config), file));
  if (absl::Status status = tokenizer->Initialize(); !status.ok()) return status;
  return tokenizer;
}

Tokenizer::Tokenizer(std::unique_ptr<SentencePieceModel> model, TokenizerConfig config,
                     std::string file)
    : file_(std::move(file)),
      config_(std::move(config)),
      model_(std::move(model)),
      vocabulary_(0, LeadingSpace::kKeep) {}

absl::Status Tokenizer::Initialize() {
  if (absl::Status status = CheckPieces(); !status.ok()) return status;
  for (const auto& [id, token] : config_.added_tokens) {
    added_.Add(id, token);
    const int32_t piece = FindPiece(token.content);
    if (!token.special && piece >= 0 && piece != id) renamed_pieces_[piece] = id;
  }
  if (absl::Status status = ResolveSpecialTokens(); !status.ok()) return status;
  FillVocabulary();
  space_id_ = FindPiece(kSpaceSymbol);
  if (config_.legacy) return absl::OkStatus();
  std::vector<int32_t> unknown;
  absl::Status status = EncodePieces(config_.unk_token, &unknown);
  unknown_text_tokens_ = unknown.size();
  return status;
}

absl::Status Tokenizer::CheckPieces() const {
  if (model_->size() > Vocabulary::kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": has ", model_->size(),
                                                   " pieces; at most ", Vocabulary::kMaxSize,
                                                   " are allowed"));
  }
  for (int32_t id = 0; id < model_->size(); ++id) {
    if (model_->Kind(id) == TokenKind::kByte || IsValidUtf8(model_->Bytes(id))) continue;
    return absl::InvalidArgumentError(absl::StrCat(file_, ": piece ", id, " is not valid UTF-8"));
  }
  return absl::OkStatus();
}

int32_t Tokenizer::FindPiece(absl::string_view text) const {
  return model_->Find(std::string_view(text.data(), text.size()));
}

absl::Status Tokenizer::EncodePieces(absl::string_view text, std::vector<int32_t>* ids) const {
  const size_t before = ids->size();
  model_->Encode(std::string_view(text.data(), text.size()), ids);
  if (renamed_pieces_.empty()) return absl::OkStatus();
  for (auto id = ids->begin() + before; id != ids->end(); ++id) {
    const auto renamed = renamed_pieces_.find(*id);
    if (renamed != renamed_pieces_.end()) *id = renamed->second;
  }
  return absl::OkStatus();
}

int32_t Tokenizer::FindToken(absl::string_view text) const {
  const int32_t added = added_.Find(text);
  return added >= 0 ? added : FindPiece(text);
}

// Named tokens are found in texts like added ones. Of those that neither the vocabulary nor the
// added tokens have, <s> and </s> would be needed; the others, padding for the most part, are of no
// use here.
absl::Status Tokenizer::ResolveSpecialTokens() {
  named_special_.assign(HighestId() + 1, false);
  for (const AddedToken& token : config_.named_tokens) {
    if (token.content.empty()) continue;
    const int32_t id = FindToken(token.content);
    if (id < 0) continue;
    if (added_.Find(token.content) < 0) added_.Add(id, token);
    named_special_[id] = true;
  }
  for (const auto& [name, content, id, text] :
       {std::tuple("bos_token", &config_.bos_token, &bos_id_, &bos_text_),
        std::tuple("eos_token", &config_.eos_token, &eos_id_, &eos_text_)}) {
    if (!content->has_value() || (*content)->empty()) continue;
    const int32_t found = FindToken(**content);
    if (found < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_, ": the vocabulary has no ", name, " \"", **content,
                       "\" (set it in tokenizer_config.json to a token that it has, or to null)"));
    }
    *id = found;
    *text = **content;
  }
  return absl::OkStatus();
}

int32_t Tokenizer::HighestId() const {
  int32_t highest = model_->size() - 1;
  for (const int32_t id : added_.ids()) highest = std::max(highest, id);
  return highest;
}

void Tokenizer::FillVocabulary() {
  LeadingSpace leading_space = model_->leading_space();
  if (!config_.legacy && config_.add_prefix_space && leading_space == LeadingSpace::kKeep) {
    leading_space = LeadingSpace::kStripOne;
  }
  vocabulary_ = Vocabulary(HighestId() + 1, leading_space);
  for (int32_t id = 0; id < model_->size(); ++id) {
    vocabulary_.Set(id, model_->Kind(id), model_->Bytes(id), /*strippable=*/true);
  }
  for (const auto& [id, token] : config_.added_tokens) {
    vocabulary_.Set(id, token.special ? TokenKind::kSpecial : TokenKind::kText, token.content,
                    /*strippable=*/false);
  }
  for (const AddedToken& token : config_.named_tokens) {
    const int32_t id = FindToken(token.content);
    if (id >= 0) vocabulary_.Set(id, TokenKind::kSpecial, token.content, /*strippable=*/false);
  }
}

absl::Status Tokenizer::CheckVocabulary(int32_t vocabulary_size) const {
  if (size() <= vocabulary_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      file_, ": does not fit the model: token ", size() - 1, " (\"", TokenText(size() - 1),
      "\") is beyond the model's vocabulary of ", vocabulary_size));
}

// The text between two special tokens. Non-legacy: the library, told to put no space in front, may
// drop spaces that are there, so such a text is encoded behind "<unk>", whose tokens are then taken
// away.
absl::Status Tokenizer::EncodeText(absl::string_view text, std::vector<int32_t>* ids) const {
  const bool begins_with_space =
      absl::StartsWith(text, " ") || absl::StartsWith(text, kSpaceSymbol);
  if (config_.legacy || !begins_with_space) return EncodePieces(text, ids);
  std::vector<int32_t> prefixed;
  absl::Status status = EncodePieces(absl::StrCat(config_.unk_token, text), &prefixed);
  if (!status.ok()) return status;
  const size_t drop = prefixed.size() >= unknown_text_tokens_ ? unknown_text_tokens_ : 0;
  ids->insert(ids->end(), prefixed.begin() + drop, prefixed.end());
  return absl::OkStatus();
}

absl::Status Tokenizer::EncodeSegments(absl::string_view text, const EncodeOptions& options,
                                       absl::Span<const ByteRange> literal_ranges,
                                       std::vector<int32_t>* ids) const {
  if (!options.parse_special) return EncodeText(text, ids);
  const size_t before = ids->size();
  bool first_is_text = false;
  size_t count = 0;
  for (const AddedTokens::Segment& segment : added_.Split(text, literal_ranges)) {
    if (segment.id < 0) {
      absl::Status status = EncodeText(segment.text, ids);
      if (!status.ok()) return status;
      first_is_text = first_is_text || count == 0;
    } else {
      // The space in front of a non-legacy text is not meant for a special token.
      if (!config_.legacy && first_is_text && ids->size() == before + 1 &&
          ids->back() == space_id_ && named_special_[segment.id]) {
        ids->pop_back();
      }
      ids->push_back(segment.id);
    }
    ++count;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(
    absl::string_view text, const EncodeOptions& options,
    absl::Span<const ByteRange> literal_ranges) const {
  GPR_ASSERT(InOrder(literal_ranges, text.size()));
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the text is ", text.size(), " bytes long; at most ", kMaxTextBytes, " are allowed"));
  }
  const size_t invalid = FirstInvalidUtf8(text);
  if (invalid < text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not valid UTF-8 at byte ", invalid));
  }
  std::vector<int32_t> ids;
  if (bos_id_ && options.add_bos.value_or(config_.add_bos)) ids.push_back(*bos_id_);
  absl::Status status;
  if (config_.legacy || text.empty()) {
    status = EncodeSegments(text, options, literal_ranges, &ids);
  } else {
    const RangedText normal = NormalizeSpaces(text, literal_ranges, config_.add_prefix_space);
    status = EncodeSegments(normal.text, options, normal.literal_ranges, &ids);
  }
  if (!status.ok()) return status;
  if (eos_id_ && options.add_eos.value_or(config_.add_eos)) ids.push_back(*eos_id_);
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  Detokenizer detokenizer(vocabulary_, skip_special);
  std::string text;
  for (const int32_t id : ids) detokenizer.Push(id, &text);
  detokenizer.Finish(&text);
  return text;
}

std::string Tokenizer::TokenText(int32_t id) const { return SanitizeUtf8(TokenBytes(id)); }

std::optional<int32_t> Tokenizer::FindSpecial(absl::string_view text) const {
  const int32_t id = added_.Find(text);
  return id >= 0 && IsSpecial(id) ? std::optional(id) : std::nullopt;
}

}  // namespace marcoro
