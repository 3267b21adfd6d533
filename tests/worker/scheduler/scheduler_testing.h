// What the tests of the scheduler share.
#pragma once

#include <numeric>
#include <utility>
#include <vector>

#include "worker/scheduler/scheduler.h"

namespace marcoro {

inline constexpr TokenId kSampled = 500;
inline const absl::Time kNow = absl::FromUnixSeconds(1000);

// Tokens first, first + 1, …
inline std::vector<TokenId> Prompt(int32_t tokens, TokenId first = 1) {
  std::vector<TokenId> prompt(tokens);
  std::iota(prompt.begin(), prompt.end(), first);
  return prompt;
}

inline NewSequence Request(SequenceId id, std::vector<TokenId> prompt, int32_t max_tokens) {
  NewSequence sequence;
  sequence.id = id;
  sequence.prompt_ids = std::move(prompt);
  sequence.max_tokens = max_tokens;
  return sequence;
}

inline std::vector<SequenceId> Ids(const StepPlan& plan) {
  std::vector<SequenceId> ids;
  for (const SequenceStep& step : plan.sequences) ids.push_back(step.id);
  return ids;
}

inline std::vector<int32_t> TokenCounts(const StepPlan& plan) {
  std::vector<int32_t> counts;
  for (const SequenceStep& step : plan.sequences) counts.push_back(step.token_count);
  return counts;
}

// Gives every entry that samples the token kSampled.
inline void Commit(Scheduler& scheduler, const StepPlan& plan) {
  std::vector<SampledToken> sampled;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    if (scheduler.outputs()[i].samples) sampled.push_back({plan.sequences[i].id, kSampled});
  }
  scheduler.Commit(sampled);
}

inline std::vector<SequenceId> RunStep(Scheduler& scheduler) {
  const StepPlan& plan = scheduler.Schedule(kNow);
  std::vector<SequenceId> ids = Ids(plan);
  if (!plan.empty()) Commit(scheduler, plan);
  return ids;
}

}  // namespace marcoro
