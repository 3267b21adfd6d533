// Sizes as people write them: "5GB", "500MB", "1.5GiB".
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace marcoro {

// Bytes of a number with a unit: B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of
// 1024). INVALID_ARGUMENT for anything else, and for what is not at least 1 and at most 2^60.
absl::StatusOr<uint64_t> ParseByteSize(const std::string& text);

}  // namespace marcoro
