#include "coordinator/text/utf8.h"

#include <cstdint>
#include <string>

#include "gtest/gtest.h"

namespace marcoro {
namespace {

// The encoding of every code point, from the definition (RFC 3629).
std::string EncodeCodePoint(uint32_t c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3f)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xc0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xe0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xf0 | c >> 18), tail(12), tail(6), tail(0)};
}

TEST(Utf8, EveryCodePointIsValidButSurrogatesAndThoseBeyondTheEnd) {
  for (uint32_t c = 0; c < 0x120000; ++c) {
    const bool valid = c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
    ASSERT_EQ(IsValidUtf8(EncodeCodePoint(c)), valid) << std::hex << c;
  }
}

TEST(Utf8, OverlongFormsAreInvalid) {
  for (const char* text : {"\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf",
                           "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf"}) {
    EXPECT_FALSE(IsValidUtf8(text));
  }
}

TEST(Utf8, AnInvalidByteIsFoundAtEveryOffset) {
  for (size_t size = 1; size < 40; ++size) {
    for (size_t at = 0; at < size; ++at) {
      std::string text(size, 'a');
      text[at] = '\xff';
      EXPECT_EQ(FirstInvalidUtf8(text), at);
    }
  }
  EXPECT_EQ(FirstInvalidUtf8("aaaaaaaaa\xe2\x82"), 9u);
  EXPECT_EQ(FirstInvalidUtf8(""), 0u);
}

TEST(Utf8, EmptyTextAndNulAreValid) {
  EXPECT_TRUE(IsValidUtf8(""));
  EXPECT_TRUE(IsValidUtf8(absl::string_view("\0a\0", 3)));
}

TEST(Utf8, TheBeginningOfACharacterIsIncompleteAsLongAsItCanBecomeOne) {
  EXPECT_EQ(FirstUtf8Character("\xf0\x9f\x98").kind, Utf8Start::kIncomplete);
  EXPECT_EQ(FirstUtf8Character("\xe2").kind, Utf8Start::kIncomplete);
  EXPECT_EQ(FirstUtf8Character("\xe2"
                               "a")
                .kind,
            Utf8Start::kInvalid);
  EXPECT_EQ(FirstUtf8Character("\xed\xa0").kind, Utf8Start::kInvalid);  // a surrogate already
  EXPECT_EQ(FirstUtf8Character("\xf4\x90").kind, Utf8Start::kInvalid);  // beyond the end already
  EXPECT_EQ(FirstUtf8Character("\x80").kind, Utf8Start::kInvalid);
  EXPECT_EQ(FirstUtf8Character("\xe2\x82\xac!").length, 3);
}

TEST(Utf8, SanitizingReplacesEveryBadByteByOneReplacementCharacter) {
  EXPECT_EQ(SanitizeUtf8("a\xff\xfe"
                         "b"),
            "a\ufffd\ufffdb");
  EXPECT_EQ(SanitizeUtf8("\xe2\x82"), "\ufffd\ufffd");
  EXPECT_EQ(SanitizeUtf8("\xe2\xe2\x82\xac"), "\ufffd\u20ac");
  EXPECT_EQ(SanitizeUtf8("\xed\xa0\x80"), "\ufffd\ufffd\ufffd");
  EXPECT_EQ(SanitizeUtf8("plain, \u65e5\u672c"), "plain, \u65e5\u672c");
  EXPECT_EQ(SanitizeUtf8(""), "");
}

TEST(Utf8, StrippingTakesUnicodeWhiteSpace) {
  EXPECT_EQ(StripLeft("\u3000\t\n\u2003\u0085 a b \u00a0"), "a b \u00a0");
  EXPECT_EQ(StripRight(" a b \u00a0\u2029\x1f"), " a b");
  EXPECT_EQ(StripLeft("\u200b a"), "\u200b a");  // zero-width space is no white space
  EXPECT_EQ(StripRight(" \n "), "");
  EXPECT_EQ(StripLeft(""), "");
}

}  // namespace
}  // namespace marcoro
