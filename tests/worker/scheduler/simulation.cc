#include "tests/worker/scheduler/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace marcoro {
namespace {

constexpr TokenId kVocabulary = 3;  // few, so that sequences meet by chance

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9e3779b97f4a7c15u ^ (b + 0x7f4a7c15u);
  x ^= x >> 31;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 29;
  return x == 0 ? 1 : x;
}

}  // namespace

SchedulerOptions Simulation::RandomOptions(std::mt19937_64& random) {
  const auto pick = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random);
  };
  SchedulerOptions options;
  options.kv_blocks = pick(0, 2) == 0 ? pick(1, 6) : pick(6, 40);
  options.context_length = pick(20, 300);
  options.max_sequences_per_step = pick(1, 12);
  options.max_tokens_per_step = pick(0, 3) == 0 ? pick(1, 8) : pick(8, 120);
  options.max_logit_rows_per_step = pick(0, 3) == 0 ? pick(1, 6) : pick(6, 64);
  options.max_waiting = pick(1, 20);
  options.prefix_cache = pick(0, 3) != 0;
  return options;
}

Simulation::Simulation(uint64_t seed, bool late_tokens)
    : late_tokens_(late_tokens),
      random_(seed),
      options_(RandomOptions(random_)),
      scheduler_(options_),
      cache_(options_.kv_blocks) {
  for (auto& block : cache_) block.fill(kZero);
  if (Chance(0.3)) long_answers_ = 0.9;
  for (int i = 0; i < 3; ++i) {
    std::vector<TokenId> stem(Random(0, options_.context_length));
    // Long runs of one token give equal blocks behind different prefixes.
    const double change = Chance(0.5) ? 0.5 : 0.02;
    TokenId token = Random(0, kVocabulary - 1);
    for (TokenId& next : stem) next = token = Chance(change) ? Random(0, kVocabulary - 1) : token;
    stems_.push_back(stem);
  }
}

int32_t Simulation::Random(int32_t low, int32_t high) {
  return std::uniform_int_distribution<int32_t>(low, high)(random_);
}

bool Simulation::Chance(double probability) {
  return std::bernoulli_distribution(probability)(random_);
}

bool Simulation::ServedFirst(const ModelSequence& a, const ModelSequence& b) const {
  if (a.request.priority != b.request.priority) return a.request.priority > b.request.priority;
  return a.arrival < b.arrival;
}

SimulationTotals Simulation::Run(int32_t steps) {
  for (int32_t i = 0; i < steps && !::testing::Test::HasFailure(); ++i) {
    now_ += absl::Milliseconds(Random(0, 20));
    AddSequences();
    CancelSome(0.002);
    RunStep(/*faults=*/true);
  }
  // Now without new ones: in each step the first in the order gains at least one position, and
  // nobody takes it away.
  int64_t bound = 2;
  for (const auto& [id, sequence] : sequences_) bound += FinalPositions(sequence.request) + 1;
  if (late_tokens_) bound *= 2;  // some are empty, and wait for the one before
  for (; bound > 0 && !sequences_.empty() && !::testing::Test::HasFailure(); --bound) {
    now_ += absl::Milliseconds(1);
    RunStep(/*faults=*/false);
  }
  if (::testing::Test::HasFailure()) return totals_;
  EndLateStep(/*faults=*/false);
  EXPECT_TRUE(sequences_.empty()) << sequences_.size() << " sequences do not end";
  EXPECT_TRUE(scheduler_.idle());
  const SchedulerCounters counters = scheduler_.counters();
  EXPECT_EQ(counters.running, 0);
  EXPECT_EQ(counters.waiting, 0);
  EXPECT_EQ(counters.kv_blocks_used, 0);
  totals_.preemptions = counters.preemptions;
  totals_.prefix_hit_tokens = counters.prefix_hit_tokens;
  return totals_;
}

NewSequence Simulation::RandomRequest() {
  NewSequence request;
  request.id = ++last_id_;
  const std::vector<TokenId>& stem = stems_[Random(0, static_cast<int32_t>(stems_.size()) - 1)];
  const auto longest = static_cast<int32_t>(stem.size());
  const int32_t kept = Random(0, long_answers_ > 0.5 ? longest / 8 : longest);
  request.prompt_ids.assign(stem.begin(), stem.begin() + kept);
  for (int32_t i = Random(0, 20); i > 0; --i) {
    request.prompt_ids.push_back(Random(0, kVocabulary - 1));
  }
  request.max_tokens = Chance(0.1) ? 0 : Chance(long_answers_) ? Random(60, 120) : Random(1, 20);
  if (request.max_tokens > 1 && Chance(0.2)) {
    for (int32_t i = Random(1, request.max_tokens - 1); i > 0; --i) {
      request.generated_ids.push_back(Random(0, kVocabulary - 1));
    }
  }
  request.priority = Chance(0.3) ? Random(-2, 2) : 0;
  if (Chance(0.2)) request.deadline = now_ + absl::Milliseconds(Random(-5, 200));
  request.cache_salt = Chance(0.2) ? Random(1, 2) : 0;
  request.wants_prompt_logits = Chance(0.2);
  return request;
}

void Simulation::AddSequences() {
  if (!Chance(0.4)) return;
  for (int32_t i = Random(1, 4); i > 0; --i) {
    NewSequence request = RandomRequest();
    const absl::Status status = scheduler_.Add(request);
    if (!status.ok()) {
      CheckRefusal(request, status);
      continue;
    }
    ModelSequence sequence;
    sequence.arrival = request.id;
    sequence.request = request;
    for (const TokenId token : request.prompt_ids) Append(&sequence, token);
    for (const TokenId token : request.generated_ids) Append(&sequence, token);
    sequence.stop_after = Chance(0.5) ? request.max_tokens
                                      : Random(static_cast<int32_t>(request.generated_ids.size()),
                                               request.max_tokens);
    EXPECT_LE(request.prompt_ids.size() + request.max_tokens, options_.context_length);
    EXPECT_LE(BlocksFor(FinalPositions(request)), options_.kv_blocks);
    sequences_.emplace(request.id, std::move(sequence));
  }
}

void Simulation::Append(ModelSequence* sequence, TokenId token) {
  const Fingerprint before = sequence->fingerprints.empty() ? Mix(77, sequence->request.cache_salt)
                                                            : sequence->fingerprints.back();
  sequence->tokens.push_back(token);
  sequence->fingerprints.push_back(Mix(before, token));
}

void Simulation::CancelSome(double probability) {
  std::vector<SequenceId> cancelled;
  for (const auto& [id, sequence] : sequences_) {
    if (Chance(probability)) cancelled.push_back(id);
  }
  for (const SequenceId id : cancelled) {
    EXPECT_TRUE(scheduler_.Finish(id));
    Erase(id);
    ++totals_.cancelled;
  }
}

void Simulation::Erase(SequenceId id) {
  sequences_.erase(id);
  for (auto& [block, readers] : poisoned_) readers.erase(id);
}

void Simulation::RunStep(bool faults) {
  const uint64_t preemptions = scheduler_.counters().preemptions;
  const StepPlan& plan = scheduler_.Schedule(now_);
  ++totals_.steps;
  Digest(plan);
  CheckExpired();
  if (plan.empty() && late_step_.has_value()) return EndLateStep(faults);
  CheckTotals(plan);
  CheckLateTokens(plan);
  CheckZeroing(plan);
  if (::testing::Test::HasFailure()) return;
  CheckOrder(plan);
  if (preemptions == scheduler_.counters().preemptions) CheckNobodyWaitsWithoutReason(plan);
  if (::testing::Test::HasFailure()) return;
  const TokenId* tokens = plan.tokens.data();
  const BlockId* blocks = plan.blocks.data();
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    CheckEntry(plan.sequences[i], scheduler_.outputs()[i], tokens, blocks);
    tokens += plan.sequences[i].token_count;
    blocks += plan.sequences[i].block_count;
    if (::testing::Test::HasFailure()) return;
  }
  WriteAndRead(plan);
  if (!plan.empty()) EndStep(plan, faults);
}

void Simulation::EndStep(const StepPlan& plan, bool faults) {
  StepUnderWay step = Sample(plan);
  // A step whose logits the host looks at is committed after that.
  const bool is_looked_at =
      std::any_of(step.outputs.begin(), step.outputs.end(),
                  [](const StepOutput& output) { return output.prompt_rows > 0; });
  const bool late = late_tokens_ && !is_looked_at && Chance(0.8);
  if (late) CommitLate(step);
  EndLateStep(faults);
  if (!late) return Complete(step, /*late=*/false, faults);
  late_step_ = std::move(step);
}

Simulation::StepUnderWay Simulation::Sample(const StepPlan& plan) {
  StepUnderWay step;
  step.sequences = plan.sequences;
  step.outputs.assign(scheduler_.outputs().begin(), scheduler_.outputs().end());
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceId id = step.sequences[i].id;
    ModelSequence& sequence = sequences_.at(id);
    if (step.outputs[i].samples) {
      // A function of all that came before, as a model's answer is.
      const auto token = static_cast<TokenId>(Mix(sequence.fingerprints.back(), 5) % kVocabulary);
      Append(&sequence, token);
      step.tokens.push_back({id, token});
    }
    step.generated.push_back(
        static_cast<int32_t>(sequence.tokens.size() - sequence.request.prompt_ids.size()));
  }
  return step;
}

void Simulation::CommitLate(const StepUnderWay& step) {
  std::vector<SampledToken> late;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceId id = step.sequences[i].id;
    ModelSequence& sequence = sequences_.at(id);
    if (step.outputs[i].samples) {
      late.push_back({id, kLateToken});
      ++sequence.late_tokens;
      ++totals_.late_tokens;
    }
    sequence.awaits_end =
        step.outputs[i].completes ||
        (step.outputs[i].samples && step.generated[i] == sequence.request.max_tokens);
  }
  scheduler_.Commit(late);
}

void Simulation::EndLateStep(bool faults) {
  if (!late_step_.has_value()) return;
  Complete(*std::exchange(late_step_, std::nullopt), /*late=*/true, faults);
}

void Simulation::Complete(const StepUnderWay& step, bool late, bool faults) {
  for (const SequenceStep& entry : step.sequences) {
    if (faults && entry.logit_rows > 0 && sequences_.contains(entry.id) && Chance(0.003)) {
      Poison(entry.id);
    }
  }
  if (faults) CancelSome(0.001);
  std::vector<SampledToken> sampled = step.tokens;
  std::shuffle(sampled.begin(), sampled.end(), random_);
  if (late) {
    scheduler_.Resolve(sampled);
  } else {
    scheduler_.Commit(sampled);
  }
  for (const SampledToken& token : sampled) {
    const auto it = sequences_.find(token.id);
    if (it == sequences_.end()) {
      ++totals_.wasted;
    } else if (late) {
      --it->second.late_tokens;
    }
  }
  FinishEnded(step);
}

void Simulation::FinishEnded(const StepUnderWay& step) {
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceId id = step.sequences[i].id;
    const auto it = sequences_.find(id);
    if (it == sequences_.end()) continue;
    const ModelSequence& sequence = it->second;
    const StepOutput& output = step.outputs[i];
    const bool stops = output.samples && step.generated[i] >= sequence.stop_after;
    if (!output.completes && !stops) continue;
    const Sequence* found = scheduler_.Find(id);
    const auto known = found->tokens.begin() + found->known_tokens();
    EXPECT_EQ(found->known_tokens(),
              static_cast<int32_t>(sequence.request.prompt_ids.size()) + step.generated[i]);
    EXPECT_TRUE(std::equal(found->tokens.begin(), known, sequence.tokens.begin()));
    if (!late_tokens_) {
      EXPECT_EQ(found->tokens, sequence.tokens);
    }
    EXPECT_TRUE(scheduler_.Finish(id));
    Erase(id);
    ++totals_.finished;
  }
}

void Simulation::Poison(SequenceId id) {
  for (const BlockId block : sequences_.at(id).blocks) {
    std::set<SequenceId>& readers = poisoned_[block];
    for (const auto& [other, sequence] : sequences_) {
      // As of now: a block of its last plan may have been exchanged for this one since.
      const absl::Span<const BlockId> held = scheduler_.Find(other)->blocks.blocks();
      const bool holds = std::count(held.begin(), held.end(), block) > 0;
      if (other != id && sequence.running && holds) readers.insert(other);
    }
  }
  EXPECT_TRUE(scheduler_.Poison(id));
  Erase(id);
  ++totals_.poisoned;
}

void Simulation::Digest(const StepPlan& plan) {
  const auto add = [&](uint64_t value) { totals_.digest = Mix(totals_.digest, value); };
  for (const SequenceStep& step : plan.sequences) {
    add(step.id);
    add(step.token_count);
    add(step.logit_rows);
  }
  for (const TokenId token : plan.tokens) add(token);
  for (const BlockId block : plan.blocks) add(block);
  for (const BlockId block : plan.blocks_to_zero) add(block);
}

}  // namespace marcoro
