// Which elements of a difference of tensors are its largest: exactly the k of greatest magnitude,
// of equal ones the first, found by counting over the bits of magnitudes and without holding the
// tensor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/merge/merge_kernels.h"
#include "worker/weights/merge/merge_method.h"

namespace marcoro {

struct LargestRequest {
  int32_t input = 0;  // its difference from the base, rounded to the inputs' dtype
  int64_t count = 0;  // how many are wanted: 1 to the tensor's elements
};

// One answer for each request. All are found in the same two or three passes. Errors of ReadRows.
absl::StatusOr<std::vector<LargestElements>> FindLargest(const MergeInputs& inputs, int32_t base,
                                                         std::span<const LargestRequest> requests,
                                                         const ParallelFor& parallel);

}  // namespace marcoro
