// What must hold after every step of a simulation.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/worker/scheduler/simulation.h"

namespace marcoro {

void Simulation::CheckRefusal(const NewSequence& request, const absl::Status& status) {
  ++totals_.refused;
  if (status.code() == absl::StatusCode::kInvalidArgument) {
    EXPECT_TRUE(request.prompt_ids.empty()) << status;
  } else if (status.code() == absl::StatusCode::kOutOfRange) {
    const bool fits_context = request.prompt_ids.size() + request.max_tokens <=
                              static_cast<size_t>(options_.context_length);
    EXPECT_FALSE(fits_context && BlocksFor(FinalPositions(request)) <= options_.kv_blocks)
        << status;
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    const auto waiting = std::count_if(sequences_.begin(), sequences_.end(),
                                       [](const auto& entry) { return !entry.second.running; });
    EXPECT_GE(waiting, options_.max_waiting);
  }
}

void Simulation::CheckExpired() {
  std::set<SequenceId> expected;
  for (const auto& [id, sequence] : sequences_) {
    if (!sequence.begun && sequence.request.deadline < now_) expected.insert(id);
  }
  const std::vector<SequenceId> expired = scheduler_.TakeExpired();
  EXPECT_EQ(std::set<SequenceId>(expired.begin(), expired.end()), expected);
  EXPECT_EQ(expired.size(), expected.size());
  for (const SequenceId id : expired) Erase(id);
  totals_.expired += expired.size();
}

void Simulation::CheckTotals(const StepPlan& plan) {
  int32_t tokens = 0, blocks = 0, rows = 0;
  std::set<SequenceId> ids;
  for (const SequenceStep& step : plan.sequences) {
    EXPECT_GE(step.token_count, 1);
    EXPECT_EQ(step.block_count, BlocksFor(step.position + step.token_count));
    tokens += step.token_count;
    blocks += step.block_count;
    rows += step.logit_rows;
    ids.insert(step.id);
    ASSERT_TRUE(sequences_.contains(step.id)) << step.id;
  }
  EXPECT_EQ(ids.size(), plan.sequences.size());
  EXPECT_EQ(scheduler_.outputs().size(), plan.sequences.size());
  EXPECT_EQ(plan.tokens.size(), tokens);
  EXPECT_EQ(plan.blocks.size(), blocks);
  EXPECT_LE(tokens, options_.max_tokens_per_step);
  EXPECT_LE(rows, options_.max_logit_rows_per_step);
  EXPECT_LE(plan.sequences.size(), options_.max_sequences_per_step);
  EXPECT_EQ(scheduler_.counters().running, plan.sequences.size() + CountThatAwaitTheirEnd())
      << "all that run move on";
  EXPECT_EQ(scheduler_.counters().running + scheduler_.counters().waiting, sequences_.size());
  for (const BlockId block : plan.blocks) {
    ASSERT_GE(block, 0);
    ASSERT_LT(block, options_.kv_blocks);
  }
  const std::set<BlockId> used(plan.blocks.begin(), plan.blocks.end());
  EXPECT_GE(scheduler_.counters().kv_blocks_used, used.size());
  totals_.shared_blocks += plan.blocks.size() - used.size();
}

int32_t Simulation::CountThatAwaitTheirEnd() const {
  return static_cast<int32_t>(
      std::count_if(sequences_.begin(), sequences_.end(),
                    [](const auto& entry) { return entry.second.awaits_end; }));
}

// The last token of a sequence, and only if it is late.
void Simulation::CheckLateTokens(const StepPlan& plan) {
  std::vector<std::pair<int32_t, SequenceId>> expected, found;
  int32_t end = 0;
  for (const SequenceStep& step : plan.sequences) {
    end += step.token_count;
    if (sequences_.at(step.id).late_tokens > 0) expected.emplace_back(end - 1, step.id);
  }
  for (const LateEntry& late : plan.late) found.emplace_back(late.index, late.id);
  EXPECT_EQ(found, expected);
}

void Simulation::CheckZeroing(const StepPlan& plan) {
  const std::set<BlockId> zeroed(plan.blocks_to_zero.begin(), plan.blocks_to_zero.end());
  EXPECT_EQ(zeroed.size(), plan.blocks_to_zero.size());
  for (const BlockId block : zeroed) {
    ASSERT_GE(block, 0);
    ASSERT_LT(block, options_.kv_blocks);
    cache_[block].fill(kZero);
    const auto it = poisoned_.find(block);
    if (it == poisoned_.end()) continue;  // held by a poisoned sequence, but not yet written
    EXPECT_TRUE(it->second.empty()) << "block " << block << " is zeroed under a reader";
    poisoned_.erase(it);
  }
  totals_.zeroed_blocks += zeroed.size();
  const BlockId* blocks = plan.blocks.data();
  for (const SequenceStep& step : plan.sequences) {
    for (int32_t i = 0; i < step.block_count; ++i) {
      const auto it = poisoned_.find(blocks[i]);
      if (it == poisoned_.end()) continue;
      EXPECT_TRUE(it->second.contains(step.id))
          << "sequence " << step.id << " got block " << blocks[i] << " with NaN in it";
    }
    blocks += step.block_count;
  }
}

// Those that begin are the first of those that waited; those that were preempted are the last of
// those that ran.
void Simulation::CheckOrder(const StepPlan& plan) {
  std::set<SequenceId> planned;
  for (const SequenceStep& step : plan.sequences) planned.insert(step.id);
  std::vector<const ModelSequence*> admitted, left_waiting, kept, preempted;
  for (auto& [id, sequence] : sequences_) {
    const bool runs = planned.contains(id) || sequence.awaits_end;
    (sequence.running ? (runs ? kept : preempted) : (runs ? admitted : left_waiting))
        .push_back(&sequence);
  }
  for (const ModelSequence* first : admitted) {
    for (const ModelSequence* second : left_waiting) {
      EXPECT_TRUE(ServedFirst(*first, *second))
          << first->request.id << " overtakes " << second->request.id;
    }
  }
  for (const ModelSequence* first : kept) {
    for (const ModelSequence* second : preempted) {
      EXPECT_TRUE(ServedFirst(*first, *second))
          << second->request.id << " is preempted rather than " << first->request.id;
    }
  }
  if (!preempted.empty()) {
    EXPECT_TRUE(admitted.empty());
  }
  for (auto& [id, sequence] : sequences_) {
    if (sequence.running && !planned.contains(id) && !sequence.awaits_end) {
      sequence.running = false;
      sequence.computed = 0;
      sequence.blocks.clear();
      for (auto& [block, readers] : poisoned_) readers.erase(id);
    }
  }
}

// If all that run, and the first that waits, could grow to their ends without sharing a block, and
// the step has room for one more, nobody waits.
void Simulation::CheckNobodyWaitsWithoutReason(const StepPlan& plan) {
  const ModelSequence* first = nullptr;
  const int32_t running = static_cast<int32_t>(plan.sequences.size()) + CountThatAwaitTheirEnd();
  int32_t blocks = running;  // kept spare
  std::set<SequenceId> planned;
  for (const SequenceStep& step : plan.sequences) planned.insert(step.id);
  for (const auto& [id, sequence] : sequences_) {
    if (planned.contains(id) || sequence.awaits_end) {
      blocks += BlocksFor(FinalPositions(sequence.request));
    } else if (first == nullptr || ServedFirst(sequence, *first)) {
      first = &sequence;
    }
  }
  if (first == nullptr) return;
  blocks += BlocksFor(FinalPositions(first->request));
  int32_t rows = 0;
  for (const SequenceStep& step : plan.sequences) rows += step.logit_rows;
  const int32_t most_sequences =
      std::min({options_.max_sequences_per_step, options_.max_tokens_per_step,
                options_.max_logit_rows_per_step});
  const bool room = running < most_sequences &&
                    static_cast<int32_t>(plan.tokens.size()) < options_.max_tokens_per_step &&
                    rows < options_.max_logit_rows_per_step;
  EXPECT_FALSE(room && blocks <= options_.kv_blocks) << first->request.id << " waits for nothing";
  EXPECT_GT(running, 0) << "some wait and nobody runs";
}

void Simulation::CheckEntry(const SequenceStep& step, const StepOutput& output,
                            const TokenId* tokens, const BlockId* blocks) {
  ModelSequence& sequence = sequences_.at(step.id);
  const NewSequence& request = sequence.request;
  EXPECT_EQ(output.begins, !sequence.begun);
  if (sequence.running) {
    EXPECT_EQ(step.position, sequence.computed) << "each position once, in order";
  } else {
    EXPECT_EQ(step.position % kBlockTokens, 0);
    if (!options_.prefix_cache) {
      EXPECT_EQ(step.position, 0);
    }
    if (output.begins) {
      EXPECT_EQ(output.cached_tokens,
                std::min(step.position, static_cast<int32_t>(request.prompt_ids.size())));
    }
  }
  const int32_t end = step.position + step.token_count;
  ASSERT_LE(end, sequence.tokens.size());
  const int32_t known = step.token_count - (sequence.late_tokens > 0 ? 1 : 0);
  EXPECT_TRUE(std::equal(tokens, tokens + known, sequence.tokens.begin() + step.position));
  if (sequence.late_tokens > 0) {
    EXPECT_EQ(sequence.late_tokens, 1);
    EXPECT_EQ(end, sequence.tokens.size()) << "a late token is the last one";
    EXPECT_EQ(tokens[known], 0);
  }
  CheckRows(sequence, step, output);

  sequence.next_prompt_token += output.prompt_rows;
  totals_.prompt_rows += output.prompt_rows;
  sequence.running = true;
  sequence.begun = true;
  sequence.computed = end;
  sequence.blocks.assign(blocks, blocks + step.block_count);
}

void Simulation::CheckRows(const ModelSequence& sequence, const SequenceStep& step,
                           const StepOutput& output) {
  const NewSequence& request = sequence.request;
  const int32_t end = step.position + step.token_count;
  const bool last = end == static_cast<int32_t>(sequence.tokens.size());
  EXPECT_EQ(output.samples, last && request.max_tokens > 0);
  EXPECT_LE(step.logit_rows, step.token_count);
  EXPECT_GE(step.logit_rows, output.prompt_rows);
  if (output.samples) {
    EXPECT_GE(step.logit_rows, 1);
  }
  if (output.prompt_rows > 0) {
    EXPECT_TRUE(request.wants_prompt_logits);
    EXPECT_EQ(output.prompt_token, sequence.next_prompt_token);
    // The first row is the one of the position before the token it predicts.
    EXPECT_EQ(end - step.logit_rows + 1, output.prompt_token);
  } else {
    EXPECT_EQ(step.logit_rows, output.samples ? 1 : 0);
  }
  const int32_t next = sequence.next_prompt_token + output.prompt_rows;
  if (request.wants_prompt_logits && (output.samples || output.completes)) {
    EXPECT_EQ(next, std::max<int32_t>(1, request.prompt_ids.size())) << "all prompt logits are due";
  }
  const auto needed = std::max<int32_t>(1, static_cast<int32_t>(request.prompt_ids.size()) - 1);
  EXPECT_EQ(output.completes, request.max_tokens == 0 && end == needed);
}

// All new positions are written, then every sequence reads all of its positions.
void Simulation::WriteAndRead(const StepPlan& plan) {
  for (const SequenceStep& step : plan.sequences) {
    const ModelSequence& sequence = sequences_.at(step.id);
    for (int32_t p = step.position; p < step.position + step.token_count; ++p) {
      cache_[sequence.blocks[p / kBlockTokens]][p % kBlockTokens] = sequence.fingerprints[p];
    }
  }
  for (const SequenceStep& step : plan.sequences) {
    const ModelSequence& sequence = sequences_.at(step.id);
    for (int32_t p = 0; p < step.position + step.token_count; ++p) {
      const BlockId block = sequence.blocks[p / kBlockTokens];
      ASSERT_EQ(cache_[block][p % kBlockTokens], sequence.fingerprints[p])
          << "sequence " << step.id << " finds something else in block " << block
          << ", where its position " << p << " should be";
    }
  }
}

}  // namespace marcoro
