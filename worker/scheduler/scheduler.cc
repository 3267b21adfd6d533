#include "worker/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace marcoro {
namespace {

SchedulerOptions Checked(SchedulerOptions options) {
  MARCORO_CHECK(options.kv_blocks >= 1);
  MARCORO_CHECK(options.context_length >= 1);
  MARCORO_CHECK(options.max_tokens_per_step >= 1);
  MARCORO_CHECK(options.max_logit_rows_per_step >= 1);
  MARCORO_CHECK(options.max_sequences_per_step >= 1);
  options.max_sequences_per_step =
      std::min({options.max_sequences_per_step, options.max_tokens_per_step,
                options.max_logit_rows_per_step});
  return options;
}

// Whether the sequence will need more blocks than it has.
bool Grows(const Sequence& sequence) {
  return BlocksFor(sequence.final_target()) > sequence.blocks.size();
}

// The first position of the next chunk whose logits are wanted; the target if none is.
int32_t FirstLogitPosition(const Sequence& sequence) {
  if (sequence.owes_prompt_logits()) {
    return std::max(sequence.computed, sequence.prompt_logits_done);
  }
  return sequence.max_tokens > 0 ? sequence.target() - 1 : sequence.target();
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(Checked(options)), pool_(options_.kv_blocks), cache_(&pool_) {
  running_.reserve(options_.max_sequences_per_step);
  planned_.reserve(options_.max_sequences_per_step);
  outputs_.reserve(options_.max_sequences_per_step);
}

absl::Status Scheduler::Validate(const NewSequence& sequence) const {
  const auto prompt = static_cast<int64_t>(sequence.prompt_ids.size());
  const auto generated = static_cast<int64_t>(sequence.generated_ids.size());
  if (sequences_.contains(sequence.id)) {
    return absl::InvalidArgumentError(absl::StrCat("sequence id ", sequence.id, " is in use"));
  }
  if (prompt == 0) return absl::InvalidArgumentError("the prompt is empty");
  if (sequence.max_tokens < 0) return absl::InvalidArgumentError("max_tokens is negative");
  if (generated > 0 && generated >= sequence.max_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(generated, " generated tokens leave nothing of ",
                                                   sequence.max_tokens, " to generate"));
  }
  const int64_t total = prompt + sequence.max_tokens;
  if (total > options_.context_length) {
    return absl::OutOfRangeError(absl::StrCat(prompt, " prompt tokens and ", sequence.max_tokens,
                                              " to generate exceed the context of ",
                                              options_.context_length));
  }
  // The last token, given or generated, is not computed (but a lone one is).
  const int32_t positions = std::max<int32_t>(1, static_cast<int32_t>(total) - 1);
  if (BlocksFor(positions) > options_.kv_blocks) {
    return absl::OutOfRangeError(absl::StrCat(total, " tokens never fit into a KV cache of ",
                                              options_.kv_blocks * int64_t{kBlockTokens}));
  }
  if (waiting_.size() >= static_cast<size_t>(std::max(0, options_.max_waiting))) {
    return absl::ResourceExhaustedError(
        absl::StrCat(waiting_.size(), " sequences are waiting already"));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Add(NewSequence added) {
  if (absl::Status status = Validate(added); !status.ok()) return status;
  auto sequence = std::make_unique<Sequence>(&pool_);
  sequence->id = added.id;
  sequence->arrival = ++arrivals_;
  sequence->priority = added.priority;
  sequence->deadline = added.deadline;
  sequence->cache_salt = added.cache_salt;
  sequence->wants_prompt_logits = added.wants_prompt_logits;
  sequence->prompt_tokens = static_cast<int32_t>(added.prompt_ids.size());
  sequence->max_tokens = added.max_tokens;
  sequence->tokens = std::move(added.prompt_ids);
  sequence->tokens.reserve(sequence->prompt_tokens + sequence->max_tokens);
  sequence->tokens.insert(sequence->tokens.end(), added.generated_ids.begin(),
                          added.generated_ids.end());
  sequence->blocks.Reserve(BlocksFor(sequence->final_target()));
  waiting_.insert(sequence.get());
  if (sequence->deadline != absl::InfiniteFuture()) expiring_.insert(sequence.get());
  sequences_.emplace(added.id, std::move(sequence));
  return absl::OkStatus();
}

bool Scheduler::Finish(SequenceId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  Remove(it->second.get());
  return true;
}

bool Scheduler::Poison(SequenceId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  for (const BlockId block : it->second->blocks.blocks()) {
    cache_.Withdraw(block);
    pool_.Taint(block);
  }
  Remove(it->second.get());
  return true;
}

void Scheduler::Remove(Sequence* sequence) {
  if (sequence->running()) {
    const auto it = std::lower_bound(running_.begin(), running_.end(), sequence, ServedBefore());
    MARCORO_CHECK(it != running_.end() && *it == sequence);
    running_.erase(it);
  } else {
    waiting_.erase(sequence);
    expiring_.erase(sequence);
  }
  if (sequence->plan_index >= 0) planned_[sequence->plan_index] = nullptr;
  sequences_.erase(sequence->id);
}

const StepPlan& Scheduler::Schedule(absl::Time now) {
  MARCORO_CHECK(!step_runs_);
  plan_.Clear();
  outputs_.clear();
  planned_.clear();
  preempted_ = false;

  DropExpired(now);
  if (MustResolve()) return plan_;
  pool_.TakeTainted(&plan_.blocks_to_zero);
  const Budget left = PlanRunning();
  // What has just been taken from a sequence is not for one that waits.
  if (!preempted_) AdmitWaiting(left);
  step_runs_ = !plan_.empty();
  return plan_;
}

void Scheduler::DropExpired(absl::Time now) {
  while (!expiring_.empty() && (*expiring_.begin())->deadline < now) {
    Sequence* sequence = *expiring_.begin();
    expired_.push_back(sequence->id);
    Remove(sequence);
  }
}

// Who is preempted is computed again from its tokens: they must be known. And some blocks may come
// back from sequences that turn out to have ended.
bool Scheduler::MustResolve() const {
  int32_t needed = 0;
  bool is_late = false;
  for (const Sequence* sequence : running_) {
    is_late |= sequence->late_tokens > 0 || sequence->awaits_end();
    if (!sequence->awaits_end()) {
      needed += std::max(0, BlocksFor(sequence->target()) - sequence->blocks.size());
    }
  }
  return is_late && needed > pool_.available();
}

Scheduler::Budget Scheduler::PlanRunning() {
  // One token and one row are set aside for each running sequence, so that a long prompt cannot
  // stop those after it.
  const auto count = static_cast<int32_t>(
      std::count_if(running_.begin(), running_.end(),
                    [](const Sequence* sequence) { return !sequence->awaits_end(); }));
  Budget budget = {.tokens = options_.max_tokens_per_step - count,
                   .logit_rows = options_.max_logit_rows_per_step - count};
  for (size_t i = 0; i < running_.size(); ++i) {  // preemption shortens running_ from its end
    Sequence* sequence = running_[i];
    if (sequence->awaits_end()) continue;
    if (!Grow(sequence)) break;
    ++budget.tokens;
    ++budget.logit_rows;
    PlanSequence(sequence, &budget);
  }
  return budget;
}

bool Scheduler::Grow(Sequence* sequence) {
  const int32_t needed = BlocksFor(sequence->target());
  while (sequence->blocks.size() < needed) {
    if (sequence->blocks.AppendNew()) continue;
    Sequence* victim = running_.back();
    Preempt(victim);
    if (victim == sequence) return false;
  }
  return true;
}

void Scheduler::Preempt(Sequence* sequence) {
  MARCORO_CHECK(sequence == running_.back() && sequence->plan_index < 0);
  MARCORO_CHECK(sequence->late_tokens == 0);
  running_.pop_back();
  sequence->blocks.Clear();
  sequence->computed = 0;
  sequence->published_blocks = 0;
  waiting_.insert(sequence);
  preempted_ = true;
  ++preemptions_;
}

void Scheduler::AdmitWaiting(Budget budget) {
  int32_t spare = 0;
  for (const Sequence* sequence : running_) spare += Grows(*sequence) ? 1 : 0;
  while (!waiting_.empty() && budget.tokens > 0 && budget.logit_rows > 0 &&
         running_.size() < static_cast<size_t>(options_.max_sequences_per_step)) {
    Sequence* sequence = *waiting_.begin();
    if (!TakeBlocks(sequence, spare)) return;
    waiting_.erase(waiting_.begin());
    expiring_.erase(sequence);
    running_.insert(std::upper_bound(running_.begin(), running_.end(), sequence, ServedBefore()),
                    sequence);
    if (Grows(*sequence)) ++spare;
    PlanSequence(sequence, &budget);
  }
}

bool Scheduler::TakeBlocks(Sequence* sequence, int32_t spare) {
  // At least one token is computed, for its logits; and so is every position whose logits are owed.
  int32_t readable = sequence->target() - 1;
  if (sequence->owes_prompt_logits()) {
    readable = std::min(readable, sequence->prompt_logits_done);
  }
  int32_t cached = 0;
  if (options_.prefix_cache) {
    cached = cache_.Match(sequence->cache_salt,
                          absl::MakeConstSpan(sequence->tokens).first(readable), &sequence->blocks);
  }
  const int32_t needed = BlocksFor(sequence->target()) - sequence->blocks.size();
  if (pool_.available() < needed + spare) {
    sequence->blocks.Clear();
    return false;
  }
  for (int32_t i = 0; i < needed; ++i) MARCORO_CHECK(sequence->blocks.AppendNew());
  sequence->computed = cached;
  sequence->published_blocks = cached / kBlockTokens;
  if (!sequence->begun && options_.prefix_cache && !sequence->owes_prompt_logits()) {
    prefix_query_tokens_ += sequence->tokens.size();
    prefix_hit_tokens_ += cached;
  }
  return true;
}

void Scheduler::PlanSequence(Sequence* sequence, Budget* budget) {
  const int32_t position = sequence->computed;
  const int32_t target = sequence->target();
  const int32_t first_logit = FirstLogitPosition(*sequence);
  const int32_t count =
      std::min({target - position, budget->tokens, first_logit - position + budget->logit_rows});
  MARCORO_CHECK(count >= 1);
  // Otherwise it has ended, and Finish was forgotten.
  MARCORO_CHECK(target <= sequence->final_target());
  const int32_t end = position + count;
  const int32_t rows = std::max(0, end - first_logit);

  StepOutput output;
  if (sequence->owes_prompt_logits()) {
    output.prompt_rows = std::max(0, std::min(end, sequence->prompt_tokens - 1) - first_logit);
    output.prompt_token = first_logit + 1;
  }
  output.samples = sequence->max_tokens > 0 && end == target;
  output.completes = sequence->max_tokens == 0 && end == target;
  output.begins = !sequence->begun;
  if (output.begins) output.cached_tokens = std::min(position, sequence->prompt_tokens);

  sequence->begun = true;
  sequence->plan_index = static_cast<int32_t>(planned_.size());
  budget->tokens -= count;
  budget->logit_rows -= rows;
  planned_.push_back(sequence);
  outputs_.push_back(output);

  const int32_t blocks = BlocksFor(end);
  plan_.sequences.push_back({.id = sequence->id,
                             .position = position,
                             .token_count = count,
                             .block_count = blocks,
                             .logit_rows = rows});
  const TokenId* tokens = sequence->tokens.data() + position;
  plan_.tokens.insert(plan_.tokens.end(), tokens, tokens + count);
  if (sequence->late_tokens > 0) {
    MARCORO_CHECK(sequence->late_tokens == 1 && count == 1 && plan_.tokens.back() == kLateToken);
    plan_.tokens.back() = 0;
    plan_.late.push_back({static_cast<int32_t>(plan_.tokens.size()) - 1, sequence->id});
  }
  const BlockId* table = sequence->blocks.blocks().data();
  plan_.blocks.insert(plan_.blocks.end(), table, table + blocks);
}

void Scheduler::Commit(absl::Span<const SampledToken> sampled) {
  MARCORO_CHECK(step_runs_);
  step_runs_ = false;
  for (const SampledToken& token : sampled) {
    const auto it = sequences_.find(token.id);
    if (it == sequences_.end() || it->second->plan_index < 0) continue;
    Sequence& sequence = *it->second;
    MARCORO_CHECK(outputs_[sequence.plan_index].samples);
    sequence.tokens.push_back(token.token);
    sequence.late_tokens += token.token == kLateToken ? 1 : 0;
  }
  for (size_t i = 0; i < planned_.size(); ++i) {
    if (planned_[i] == nullptr) continue;
    CommitSequence(planned_[i], plan_.sequences[i], outputs_[i]);
  }
  planned_.clear();
}

void Scheduler::CommitSequence(Sequence* sequence, const SequenceStep& step,
                               const StepOutput& output) {
  sequence->plan_index = -1;
  sequence->computed = step.position + step.token_count;
  // Exactly one token came if one was to be sampled.
  if (output.samples) {
    MARCORO_CHECK(sequence->tokens.size() == static_cast<size_t>(sequence->computed) + 1);
  }
  if (output.prompt_rows > 0) {
    sequence->prompt_logits_done = output.prompt_token + output.prompt_rows - 1;
  }
  // What a step with late tokens computed may turn out to be NaN.
  if (!output.samples || sequence->late_tokens == 0) Publish(sequence);
}

void Scheduler::Publish(Sequence* sequence) {
  // A late token's own position may have been computed, by a step that nobody has looked at.
  const int32_t seen = std::min(sequence->computed, sequence->known_tokens() - 1);
  const int32_t full = (sequence->late_tokens > 0 ? seen : sequence->computed) / kBlockTokens;
  if (!options_.prefix_cache || full <= sequence->published_blocks) return;
  sequence->published_blocks = cache_.Publish(
      sequence->cache_salt, absl::MakeConstSpan(sequence->tokens).first(full * kBlockTokens),
      sequence->published_blocks, &sequence->blocks);
}

void Scheduler::Resolve(absl::Span<const SampledToken> sampled) {
  for (const SampledToken& token : sampled) {
    const auto it = sequences_.find(token.id);
    if (it == sequences_.end()) continue;
    Sequence& sequence = *it->second;
    MARCORO_CHECK(sequence.late_tokens > 0 && token.token != kLateToken);
    sequence.tokens[static_cast<size_t>(sequence.known_tokens())] = token.token;
    --sequence.late_tokens;
    Publish(&sequence);
  }
}

std::vector<SequenceId> Scheduler::TakeExpired() { return std::exchange(expired_, {}); }

const Sequence* Scheduler::Find(SequenceId id) const {
  const auto it = sequences_.find(id);
  return it == sequences_.end() ? nullptr : it->second.get();
}

SchedulerCounters Scheduler::counters() const {
  return {.running = static_cast<int32_t>(running_.size()),
          .waiting = static_cast<int32_t>(waiting_.size()),
          .kv_blocks_used = pool_.held(),
          .kv_blocks_total = pool_.block_count(),
          .preemptions = preemptions_,
          .prefix_query_tokens = prefix_query_tokens_,
          .prefix_hit_tokens = prefix_hit_tokens_};
}

}  // namespace marcoro
