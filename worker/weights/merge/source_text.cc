#include "worker/weights/merge/source_text.h"

#include <cstddef>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

constexpr size_t kQuotedBytes = 60;

// Length of the UTF-8 character that the text begins with; 0 if it begins with none.
size_t CharacterLength(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char second = byte(1);
  const bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
  const bool surrogate = first == 0xed && second > 0x9f;
  const bool beyond = first == 0xf4 && second > 0x8f;
  return overlong || surrogate || beyond ? 0 : length;
}

}  // namespace

absl::Status ErrorAt(const std::string& file, SourcePosition position, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(file, ":", position.line, ":", position.column, ": ", what));
}

std::string Quoted(std::string_view text) {
  std::string shown;
  while (!text.empty() && shown.size() < kQuotedBytes) {
    const size_t length = CharacterLength(text);
    if (length == 0 || static_cast<unsigned char>(text[0]) < 0x20) {
      shown.push_back('?');
    } else {
      shown.append(text.substr(0, length));
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return absl::StrCat("'", shown, text.empty() ? "'" : "…'");
}

absl::Status CheckUtf8(std::string_view text, const std::string& file) {
  SourcePosition position = {1, 1};
  while (!text.empty()) {
    const size_t length = CharacterLength(text);
    if (length == 0) return ErrorAt(file, position, "not valid UTF-8");
    position = text[0] == '\n' ? SourcePosition{position.line + 1, 1}
                               : SourcePosition{position.line, position.column + 1};
    text.remove_prefix(length);
  }
  return absl::OkStatus();
}

}  // namespace marcoro
