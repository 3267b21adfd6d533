// What sampling must do, written as plainly as possible: full sorts, doubles, libm.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "worker/sampling/sampling_params.h"

namespace marcoro {

// Probabilities (vocabulary) after penalties, bias, temperature, top_k, top_p, min_p and typical_p.
std::vector<double> ReferenceDistribution(const std::vector<float>& logits,
                                          const SamplingParams& params,
                                          const std::vector<TokenId>& prompt,
                                          const std::vector<TokenId>& generated);

LogitSummary ReferenceSummary(const std::vector<float>& logits);

// Normal logits with the given deviation, from a seed.
std::vector<float> RandomLogits(int32_t vocabulary, double deviation, uint64_t seed);

}  // namespace marcoro
