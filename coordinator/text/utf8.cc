#include "coordinator/text/utf8.h"

#include <cstdint>
#include <cstring>

namespace marcoro {
namespace {

struct ByteInterval {
  uint8_t low, high;
  bool Contains(uint8_t byte) const { return low <= byte && byte <= high; }
};

constexpr ByteInterval kContinuation = {0x80, 0xbf};

// The second byte is where overlong forms, surrogates and code points above U+10FFFF show.
ByteInterval SecondByte(uint8_t lead) {
  switch (lead) {
    case 0xe0:
      return {0xa0, 0xbf};
    case 0xed:
      return {0x80, 0x9f};
    case 0xf0:
      return {0x90, 0xbf};
    case 0xf4:
      return {0x80, 0x8f};
    default:
      return kContinuation;
  }
}

int SequenceLength(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xc2) return 0;
  if (lead < 0xe0) return 2;
  if (lead < 0xf0) return 3;
  return lead < 0xf5 ? 4 : 0;
}

uint32_t CodePoint(absl::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(character[i]); };
  switch (character.size()) {
    case 1:
      return byte(0);
    case 2:
      return (byte(0) & 0x1fu) << 6 | (byte(1) & 0x3fu);
    case 3:
      return (byte(0) & 0x0fu) << 12 | (byte(1) & 0x3fu) << 6 | (byte(2) & 0x3fu);
    default:
      return (byte(0) & 0x07u) << 18 | (byte(1) & 0x3fu) << 12 | (byte(2) & 0x3fu) << 6 |
             (byte(3) & 0x3fu);
  }
}

// Python's str.isspace.
bool IsWhiteSpace(uint32_t code_point) {
  switch (code_point) {
    case 0x20:
    case 0x85:
    case 0xa0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202f:
    case 0x205f:
    case 0x3000:
      return true;
    default:
      return (code_point >= 0x09 && code_point <= 0x0d) ||
             (code_point >= 0x1c && code_point <= 0x1f) ||
             (code_point >= 0x2000 && code_point <= 0x200a);
  }
}

}  // namespace

Utf8Start FirstUtf8Character(absl::string_view text) {
  const auto lead = static_cast<uint8_t>(text[0]);
  const int length = SequenceLength(lead);
  if (length == 0) return {Utf8Start::kInvalid, 1};
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) == text.size()) return {Utf8Start::kIncomplete, i};
    const ByteInterval allowed = i == 1 ? SecondByte(lead) : kContinuation;
    if (!allowed.Contains(static_cast<uint8_t>(text[i]))) return {Utf8Start::kInvalid, 1};
  }
  return {Utf8Start::kCharacter, length};
}

size_t FirstInvalidUtf8(absl::string_view text) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  size_t i = 0;
  while (i < text.size()) {
    if (i + sizeof(uint64_t) <= text.size()) {
      uint64_t word;
      std::memcpy(&word, text.data() + i, sizeof(word));
      if ((word & kHighBits) == 0) {
        i += sizeof(word);
        continue;
      }
    }
    const Utf8Start start = FirstUtf8Character(text.substr(i));
    if (start.kind != Utf8Start::kCharacter) return i;
    i += start.length;
  }
  return text.size();
}

bool IsValidUtf8(absl::string_view text) { return FirstInvalidUtf8(text) == text.size(); }

std::string SanitizeUtf8(absl::string_view text) {
  std::string clean;
  clean.reserve(text.size());
  while (!text.empty()) {
    const size_t valid = FirstInvalidUtf8(text);
    clean.append(text.data(), valid);
    text.remove_prefix(valid);
    if (text.empty()) break;
    clean.append(kReplacementCharacter.data(), kReplacementCharacter.size());
    text.remove_prefix(1);
  }
  return clean;
}

absl::string_view StripLeft(absl::string_view text) {
  while (!text.empty()) {
    const size_t length = FirstUtf8Character(text).length;
    if (!IsWhiteSpace(CodePoint(text.substr(0, length)))) break;
    text.remove_prefix(length);
  }
  return text;
}

absl::string_view StripRight(absl::string_view text) {
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && kContinuation.Contains(static_cast<uint8_t>(text[begin]))) --begin;
    if (!IsWhiteSpace(CodePoint(text.substr(begin)))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

}  // namespace marcoro
