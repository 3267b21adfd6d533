// The one order in which partial sums are added.
#pragma once

#include <cstddef>

#include "absl/types/span.h"

namespace marcoro {

// output[i] = ((inputs[0][i] + inputs[1][i]) + (inputs[2][i] + inputs[3][i])) + … for i < count: a
// balanced binary tree over the inputs, of which there are 1, 2, 4 or 8. output may be one of them.
void TreeSum(absl::Span<const float* const> inputs, size_t count, float* output);

// Whether TreeSum adds that many.
constexpr bool IsTreeSize(int ranks) {
  return ranks == 1 || ranks == 2 || ranks == 4 || ranks == 8;
}

}  // namespace marcoro
