// Many calls to a server, several at a time.
#pragma once

#include <cstddef>
#include <functional>

#include "absl/status/status.h"

namespace marcoro {

// call(i) for every i < count, on `threads` threads. After an error no further call is begun; the
// error of the lowest i that failed is returned.
absl::Status CallInParallel(size_t count, int threads,
                            const std::function<absl::Status(size_t index)>& call);

}  // namespace marcoro
