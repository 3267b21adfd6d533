// Text that a command takes from an argument, a file or standard input.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace marcoro {

// More than any context holds.
inline constexpr size_t kMaxInputBytes = 16 << 20;

// Everything in the file; "-" is standard input. INVALID_ARGUMENT naming the file if it cannot be
// read, is longer than kMaxInputBytes, or is not UTF-8.
absl::StatusOr<std::string> ReadText(const std::string& path);

// The text itself if it is UTF-8; `name` is used in the error.
absl::StatusOr<std::string> CheckedText(std::string text, const std::string& name);

}  // namespace marcoro
