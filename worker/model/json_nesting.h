// How deep a JSON text is nested. The JSON library parses any depth, but copies and prints what it
// has parsed by recursion: of a text from outside that is nested without end, the stack would be.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace marcoro {

// Deeper than any file of a model.
inline constexpr int kMaxJsonNesting = 100;

// INVALID_ARGUMENT, naming the file, if objects and lists lie deeper in each other than that. Says
// nothing of whether the text is valid JSON.
absl::Status CheckJsonNesting(std::string_view text, const std::string& file);

}  // namespace marcoro
