#include "worker/sampling/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "worker/sampling/philox.h"

namespace marcoro {
namespace {

// Index of the largest logit, the lower one on ties. No logit is NaN.
TokenId Best(absl::Span<const float> logits) {
  constexpr size_t kLanes = 32;
  std::array<float, kLanes> lanes;
  lanes.fill(-std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    const float* block = logits.data() + i;
    for (size_t j = 0; j < kLanes; ++j) lanes[j] = block[j] > lanes[j] ? block[j] : lanes[j];
  }
  float best = -std::numeric_limits<float>::infinity();
  for (const float lane : lanes) best = lane > best ? lane : best;
  for (; i < logits.size(); ++i) best = logits[i] > best ? logits[i] : best;
  return static_cast<TokenId>(std::find(logits.begin(), logits.end(), best) - logits.begin());
}

}  // namespace

SequenceSampler::SequenceSampler(SamplingParams params, absl::Span<const TokenId> prompt,
                                 absl::Span<const TokenId> generated)
    : params_(std::move(params)), adjustments_(params_, prompt), constraints_(params_, prompt) {
  for (const TokenId token : generated) Append(token);
}

void SequenceSampler::Append(TokenId token) {
  adjustments_.Append(token);
  constraints_.Append(token);
  ++generated_;
}

absl::StatusOr<SampleResult> SequenceSampler::Sample(absl::Span<const float> logits,
                                                     const LogitSummary& summary,
                                                     SamplingScratch* scratch) const {
  if (summary.has_nan || !std::isfinite(summary.max)) {
    return absl::DataLossError("the model's logits are not numbers");
  }
  const absl::StatusOr<TokenId> token = Choose(logits, summary, scratch);
  if (!token.ok()) return token.status();
  SampleResult result = {.token = *token, .logprob = {}};
  if (params_.logprobs >= 0) {
    result.logprob = LogprobOf(logits, summary, *token, params_.logprobs, &scratch->candidates);
  }
  return result;
}

absl::StatusOr<TokenId> SequenceSampler::Choose(absl::Span<const float> logits,
                                                const LogitSummary& summary,
                                                SamplingScratch* scratch) const {
  TokenId best = summary.best;
  if (adjustments_.active() || constraints_.active()) {
    scratch->logits.assign(logits.begin(), logits.end());
    adjustments_.Apply(absl::MakeSpan(scratch->logits));
    constraints_.Apply(absl::MakeSpan(scratch->logits));
    logits = scratch->logits;
    best = Best(logits);
    if (logits[best] == -std::numeric_limits<float>::infinity()) {
      return absl::InvalidArgumentError(
          "allowed_token_ids, bad_words and min_tokens together forbid every token");
    }
    if (!std::isfinite(logits[best])) {
      return absl::DataLossError("penalties and bias make logits infinite");
    }
  }
  if (params_.temperature == 0) return best;
  scratch->distribution.Build(logits, logits[best], params_);
  return scratch->distribution.Draw(RandomBits53(params_.seed, static_cast<uint64_t>(generated_)));
}

}  // namespace marcoro
