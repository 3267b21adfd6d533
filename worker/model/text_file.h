// Small text files of a checkpoint, read whole.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace marcoro {

// The bytes of a regular file (symlinks followed). NOT_FOUND if there is none, INVALID_ARGUMENT if
// it is no regular file or longer than max_bytes, UNAVAILABLE if it cannot be read. Messages name
// the path.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

// Whether path is a regular file (symlinks followed).
bool IsRegularFile(const std::string& path);

}  // namespace marcoro
