#pragma once

#include <cstdint>

namespace marcoro {

enum class TokenKind : uint8_t {
  kNone,     // no token has this id; writes nothing
  kText,     // whole characters
  kByte,     // one byte, perhaps of a character of several
  kSpecial,  // <s>, </s>, <unk>, <|im_end|> …: text that can be left out
};

// Whether the space that encoding puts in front of a text is taken away again when decoding.
enum class LeadingSpace : uint8_t {
  kKeep,
  kStripOne,
  kStripAll,  // for models that collapse white space
};

}  // namespace marcoro
