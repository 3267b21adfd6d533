// Log-probabilities of the model's own distribution: temperature 1, no penalties, nothing cut off.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/sampling/candidates.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

inline constexpr int32_t kMostAlternatives = 20;

struct TokenAlternative {
  TokenId token = 0;
  float logprob = 0;  // natural logarithm, at most 0 but for rounding
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;
  std::vector<TokenAlternative> top = {};  // the likeliest tokens, by (logit, id), best first
};

// Log-probability of `token`, with the `alternatives` likeliest tokens (0 … 20; fewer if fewer have
// a logit above -infinity). The summary is that of the logits and has no NaN. `scratch` is
// overwritten.
TokenLogprob LogprobOf(absl::Span<const float> logits, const LogitSummary& summary, TokenId token,
                       int32_t alternatives, std::vector<Candidate>* scratch);

}  // namespace marcoro
