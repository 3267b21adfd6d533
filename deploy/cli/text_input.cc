#include "deploy/cli/text_input.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "coordinator/text/utf8.h"

namespace marcoro {

absl::StatusOr<std::string> CheckedText(std::string text, const std::string& name) {
  const size_t invalid = FirstInvalidUtf8(text);
  if (invalid == text.size()) return text;
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is not UTF-8: byte ", invalid, " belongs to no character"));
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  const bool standard = path == "-";
  const std::string name = standard ? "standard input" : path;
  FILE* const file = standard ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot read ", name, ": ", std::strerror(errno)));
  }
  const absl::Cleanup close = [&] {
    if (!standard) std::fclose(file);
  };
  std::string text;
  char buffer[1 << 16];
  while (const size_t count = std::fread(buffer, 1, sizeof(buffer), file)) {
    text.append(buffer, count);
    if (text.size() > kMaxInputBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " is longer than ", kMaxInputBytes, " bytes"));
    }
  }
  if (std::ferror(file)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot read ", name, ": ", std::strerror(errno)));
  }
  return CheckedText(std::move(text), name);
}

}  // namespace marcoro
