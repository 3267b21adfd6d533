#include "worker/sampling/logprobs.h"

#include <algorithm>

#include "kernels/check.h"

namespace marcoro {
namespace {

float Logprob(float logit, const LogitSummary& summary) {
  return static_cast<float>(static_cast<double>(logit) - summary.log_sum_exp);
}

}  // namespace

TokenLogprob LogprobOf(absl::Span<const float> logits, const LogitSummary& summary, TokenId token,
                       int32_t alternatives, std::vector<Candidate>* scratch) {
  MARCORO_CHECK(!summary.has_nan);
  MARCORO_CHECK(token >= 0 && static_cast<size_t>(token) < logits.size());
  MARCORO_CHECK(alternatives >= 0 && alternatives <= kMostAlternatives);
  TokenLogprob result = {.token = token, .logprob = Logprob(logits[token], summary)};
  if (alternatives == 0) return result;
  SelectTop(logits, alternatives, scratch);
  std::sort(scratch->begin(), scratch->end(), RankedBefore());
  result.top.reserve(scratch->size());
  for (const Candidate& candidate : *scratch) {
    result.top.push_back({.token = candidate.id, .logprob = Logprob(candidate.key, summary)});
  }
  return result;
}

}  // namespace marcoro
