#include "coordinator/text/detokenizer.h"

#include <cstring>

#include "absl/strings/string_view.h"
#include "coordinator/text/utf8.h"

namespace marcoro {
namespace {

void Append(absl::string_view bytes, std::string* text) {
  text->append(bytes.data(), bytes.size());
}

}  // namespace

Detokenizer::Detokenizer(const Vocabulary& vocabulary, bool skip_special,
                         absl::Span<const int32_t> context)
    : vocabulary_(&vocabulary),
      skip_special_(skip_special),
      at_start_(vocabulary.leading_space() != LeadingSpace::kKeep) {
  std::string text;
  for (const int32_t id : context) {
    Push(id, &text);
    text.clear();
  }
}

void Detokenizer::Push(int32_t id, std::string* text) {
  const TokenKind kind = vocabulary_->kind(id);
  const absl::string_view bytes = vocabulary_->bytes(id);
  if (kind == TokenKind::kByte) {
    PushByte(bytes[0], text);
    return;
  }
  if (unfinished_size_ > 0) Finish(text);
  switch (kind) {
    case TokenKind::kText:
      Append(at_start_ ? StripLeadingSpace(id, bytes) : bytes, text);
      break;
    case TokenKind::kSpecial:
      if (!skip_special_) Append(bytes, text);
      break;
    case TokenKind::kNone:
    case TokenKind::kByte:
      break;
  }
}

void Detokenizer::Finish(std::string* text) {
  for (; unfinished_size_ > 0; --unfinished_size_) Append(kReplacementCharacter, text);
}

void Detokenizer::PushByte(char byte, std::string* text) {
  at_start_ = false;
  unfinished_[unfinished_size_++] = byte;
  while (unfinished_size_ > 0) {
    const absl::string_view bytes(unfinished_, unfinished_size_);
    const Utf8Start start = FirstUtf8Character(bytes);
    if (start.kind == Utf8Start::kIncomplete) return;
    Append(
        start.kind == Utf8Start::kCharacter ? bytes.substr(0, start.length) : kReplacementCharacter,
        text);
    unfinished_size_ -= start.length;
    std::memmove(unfinished_, unfinished_ + start.length, unfinished_size_);
  }
}

absl::string_view Detokenizer::StripLeadingSpace(int32_t id, absl::string_view bytes) {
  const bool strip = vocabulary_->has_strippable_space(id);
  if (strip) bytes.remove_prefix(1);
  at_start_ = strip && bytes.empty() && vocabulary_->leading_space() == LeadingSpace::kStripAll;
  return bytes;
}

}  // namespace marcoro
