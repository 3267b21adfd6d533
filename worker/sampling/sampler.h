// Chooses a sequence's next token.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/sampling/distribution.h"
#include "worker/sampling/logit_adjustments.h"
#include "worker/sampling/logprobs.h"
#include "worker/sampling/sampling_params.h"
#include "worker/sampling/token_constraints.h"

namespace marcoro {

// Memory for one call of Sample at a time: one for each thread, kept from call to call. Holds no
// state.
struct SamplingScratch {
  std::vector<float> logits;
  TokenDistribution distribution;
  std::vector<Candidate> candidates;
};

struct SampleResult {
  TokenId token = 0;
  // Set if params.logprobs >= 0.
  TokenLogprob logprob;
};

// Steps, in this order: penalties and bias (LogitAdjustments), forbidden tokens (TokenConstraints),
// temperature, top_k, top_p, min_p, typical_p (TokenDistribution), the draw. At temperature 0 the
// token of the largest logit is taken instead.
//
// The draw at generated index g (0 for the first generated token) uses RandomBits53(seed, g) and
// nothing else, so that a sequence rebuilt from its prompt and generated tokens goes on as if it
// had never stopped.
class SequenceSampler {
 public:
  // `generated`: tokens generated before, by this worker or another.
  SequenceSampler(SamplingParams params, absl::Span<const TokenId> prompt,
                  absl::Span<const TokenId> generated);

  // The next token, given the logits (vocabulary) that the model computed for it and their summary.
  // DATA_LOSS if a logit is NaN or the largest is not finite; INVALID_ARGUMENT if the request's
  // parameters forbid every token. Without adjustments and at temperature 0 this takes O(1).
  absl::StatusOr<SampleResult> Sample(absl::Span<const float> logits, const LogitSummary& summary,
                                      SamplingScratch* scratch) const;

  // The token that follows: the one that was sampled. O(1) (but for the length of the longest bad
  // word).
  void Append(TokenId token);

  const SamplingParams& params() const { return params_; }
  // Tokens generated so far, those given to the constructor included.
  int32_t generated_tokens() const { return generated_; }

 private:
  absl::StatusOr<TokenId> Choose(absl::Span<const float> logits, const LogitSummary& summary,
                                 SamplingScratch* scratch) const;

  const SamplingParams params_;
  LogitAdjustments adjustments_;
  TokenConstraints constraints_;
  int32_t generated_ = 0;
};

}  // namespace marcoro
