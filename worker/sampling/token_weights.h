// Softmax in whole numbers.
//
// A token's weight is its probability relative to the likeliest token, as an integer in units of
// 2^-30. Sums of integers do not depend on their order, so that cutting a distribution and drawing
// from it is exact wherever and however it is summed. What is less likely than 2^-31 of the
// likeliest has no weight at all.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace marcoro {

inline constexpr uint32_t kFullWeight = 1u << 30;

// For each logit its exponent, (logit - max) / temperature, and its weight, exp(exponent). max is
// finite and the largest of the logits (none is NaN), temperature > 0. All spans are of one size.
// Uses no library function, whose bits might differ from machine to machine.
void WeighTokens(absl::Span<const float> logits, float max, float temperature,
                 absl::Span<float> exponents, absl::Span<uint32_t> weights);

}  // namespace marcoro
