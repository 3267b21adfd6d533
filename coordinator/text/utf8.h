// UTF-8 as the Unicode standard defines it: no overlong forms, no surrogates, nothing above
// U+10FFFF. NUL is a character.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace marcoro {

// U+FFFD, what stands in for a byte that is part of no character.
inline constexpr absl::string_view kReplacementCharacter = "\xef\xbf\xbd";

// Whether `text` begins with a whole character, with part of one, or with a byte that begins none.
struct Utf8Start {
  enum Kind { kCharacter, kIncomplete, kInvalid };
  Kind kind = kInvalid;
  int length = 1;  // bytes of the character; kIncomplete: all of `text`; kInvalid: 1
};

// `text` is not empty.
Utf8Start FirstUtf8Character(absl::string_view text);

// The offset of the first byte that belongs to no character, or text.size() where there is none.
size_t FirstInvalidUtf8(absl::string_view text);

bool IsValidUtf8(absl::string_view text);

// The text with every byte that belongs to no character replaced by one U+FFFD.
std::string SanitizeUtf8(absl::string_view text);

// The text without the characters that Unicode calls white space at its left or right end, as
// Python's str.lstrip and str.rstrip (and so chat templates and the reference tokenizer) take them.
// `text` is valid UTF-8.
absl::string_view StripLeft(absl::string_view text);
absl::string_view StripRight(absl::string_view text);

}  // namespace marcoro
