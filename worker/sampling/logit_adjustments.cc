#include "worker/sampling/logit_adjustments.h"

namespace marcoro {
namespace {

bool InVocabulary(TokenId id, absl::Span<const float> logits) {
  return id >= 0 && static_cast<size_t>(id) < logits.size();
}

}  // namespace

LogitAdjustments::LogitAdjustments(const SamplingParams& params, absl::Span<const TokenId> prompt)
    : penalties_(params.repetition_penalty != 1 || params.presence_penalty != 0 ||
                 params.frequency_penalty != 0),
      repetition_penalty_(params.repetition_penalty),
      presence_penalty_(params.presence_penalty),
      frequency_penalty_(params.frequency_penalty),
      bias_(params.logit_bias) {
  if (params.repetition_penalty == 1) return;  // then the prompt does not matter
  for (const TokenId token : prompt) Seen(token);
}

LogitAdjustments::SeenToken& LogitAdjustments::Seen(TokenId token) {
  const auto [it, is_new] = index_.try_emplace(token, seen_.size());
  if (is_new) seen_.push_back({.id = token});
  return seen_[it->second];
}

void LogitAdjustments::Append(TokenId token) {
  if (penalties_) ++Seen(token).generated;
}

void LogitAdjustments::Apply(absl::Span<float> logits) const {
  for (const SeenToken& seen : seen_) {
    if (!InVocabulary(seen.id, logits)) continue;
    float logit = logits[seen.id];
    logit = logit > 0 ? logit / repetition_penalty_ : logit * repetition_penalty_;
    if (seen.generated > 0) {
      logit -= frequency_penalty_ * static_cast<float>(seen.generated) + presence_penalty_;
    }
    logits[seen.id] = logit;
  }
  for (const auto& [id, bias] : bias_) {
    if (InVocabulary(id, logits)) logits[id] += bias;
  }
}

}  // namespace marcoro
