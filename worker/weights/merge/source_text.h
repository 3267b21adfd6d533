// Places in a text file, and messages about them.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace marcoro {

// Where something stands in a file; both count from 1.
struct SourcePosition {
  int line = 0;
  int column = 0;
};

// INVALID_ARGUMENT: "recipe.yml:3:7: " and what is wrong there.
absl::Status ErrorAt(const std::string& file, SourcePosition position, absl::string_view what);

// A quoted beginning of a text, for messages.
std::string Quoted(std::string_view text);

// INVALID_ARGUMENT naming the place if the file's text is not valid UTF-8.
absl::Status CheckUtf8(std::string_view text, const std::string& file);

}  // namespace marcoro
