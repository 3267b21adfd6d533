#include "tests/worker/scheduler/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>

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

Simulation::Simulation(uint64_t seed)
    : random_(seed),
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
  for (; bound > 0 && !sequences_.empty() && !::testing::Test::HasFailure(); --bound) {
    now_ += absl::Milliseconds(1);
    RunStep(/*faults=*/false);
  }
  if (::testing::Test::HasFailure()) return totals_;
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
  CheckTotals(plan);
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
  const std::vector<SequenceStep> steps = plan.sequences;
  const std::vector<StepOutput> outputs(scheduler_.outputs().begin(), scheduler_.outputs().end());
  std::vector<SampledToken> sampled;
  for (size_t i = 0; i < steps.size(); ++i) {
    ModelSequence& sequence = sequences_.at(steps[i].id);
    if (faults && steps[i].logit_rows > 0 && Chance(0.003)) {
      Poison(steps[i].id);
      continue;
    }
    if (!outputs[i].samples) continue;
    // A function of all that came before, as a model's answer is.
    const auto token = static_cast<TokenId>(Mix(sequence.fingerprints.back(), 5) % kVocabulary);
    Append(&sequence, token);
    sampled.push_back({steps[i].id, token});
  }
  if (faults) CancelSome(0.001);
  std::shuffle(sampled.begin(), sampled.end(), random_);
  scheduler_.Commit(sampled);
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto it = sequences_.find(steps[i].id);
    if (it == sequences_.end()) continue;
    const ModelSequence& sequence = it->second;
    const auto generated =
        static_cast<int32_t>(sequence.tokens.size() - sequence.request.prompt_ids.size());
    if (!outputs[i].completes && (!outputs[i].samples || generated < sequence.stop_after)) continue;
    EXPECT_EQ(scheduler_.Find(steps[i].id)->tokens, sequence.tokens);
    EXPECT_TRUE(scheduler_.Finish(steps[i].id));
    Erase(steps[i].id);
    ++totals_.finished;
  }
}

void Simulation::Poison(SequenceId id) {
  for (const BlockId block : sequences_.at(id).blocks) {
    std::set<SequenceId>& readers = poisoned_[block];
    for (const auto& [other, sequence] : sequences_) {
      const bool holds = std::count(sequence.blocks.begin(), sequence.blocks.end(), block) > 0;
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
