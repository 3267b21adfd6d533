// Decides what each step of the engine computes: continuous batching over a paged KV cache.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "worker/scheduler/block_pool.h"
#include "worker/scheduler/prefix_cache.h"
#include "worker/scheduler/sequence.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

struct SchedulerOptions {
  // KV blocks of 16 tokens, at least 1. Fewer mean more preemption and refusals of long sequences.
  int32_t kv_blocks = 1;
  // Most tokens of one sequence, prompt and generated together.
  int32_t context_length = 4096;
  // Most sequences that run at once. Cut to the two bounds below, so that each of them moves on in
  // every step.
  int32_t max_sequences_per_step = 256;
  // Token budget of a step: one for each running sequence, the rest for prefill. More means faster
  // prefill and longer pauses between the tokens of running sequences.
  int32_t max_tokens_per_step = 512;
  // Most rows of logits in a step. Prompts whose logits are wanted at every position are cut into
  // chunks accordingly.
  int32_t max_logit_rows_per_step = 256;
  // Most sequences that wait; beyond it Add refuses. Preempted sequences return to the queue even
  // if it is full.
  int32_t max_waiting = 1024;
  bool prefix_cache = true;
};

struct NewSequence {
  SequenceId id = 0;                   // not that of a sequence that waits or runs
  std::vector<TokenId> prompt_ids;     // at least one
  std::vector<TokenId> generated_ids;  // generated earlier: the sequence goes on after them
  int32_t max_tokens = 0;  // to generate, those in generated_ids included. 0: none (scoring)
  int32_t priority = 0;    // higher goes first
  // Dropped and reported by TakeExpired if it has not begun by then.
  absl::Time deadline = absl::InfiniteFuture();
  // KV blocks are shared only between sequences of equal salt.
  uint64_t cache_salt = 0;
  // Logits at every prompt position but the last are wanted too. Such a sequence computes its whole
  // prompt.
  bool wants_prompt_logits = false;
};

// What the logit rows of one entry of the plan are for. The row of position p predicts token p + 1.
struct StepOutput {
  // The first so many rows predict the prompt tokens [prompt_token, prompt_token + prompt_rows):
  // each exactly once in the life of the sequence, in order, whatever preemption repeats.
  int32_t prompt_rows = 0;
  int32_t prompt_token = 0;
  // The last row is to be sampled: Commit expects its token.
  bool samples = false;
  // The sequence generates nothing and has all it asked for after this step: Finish it after
  // Commit.
  bool completes = false;
  // The sequence begins with this step, and found that many prompt tokens in the prefix cache.
  bool begins = false;
  int32_t cached_tokens = 0;
};

struct SampledToken {
  SequenceId id = 0;
  TokenId token = 0;  // kLateToken in Commit: Resolve will tell
};

struct SchedulerCounters {
  int32_t running = 0;
  int32_t waiting = 0;  // preempted sequences included
  int32_t kv_blocks_used = 0;
  int32_t kv_blocks_total = 0;
  // Since the start:
  uint64_t preemptions = 0;
  uint64_t prefix_query_tokens = 0;  // prompt and replayed tokens looked up, once for each sequence
  uint64_t prefix_hit_tokens = 0;
};

// Pure and deterministic: equal calls give equal plans; time is given, never asked for. Not
// thread-safe. One step at a time:
//
//   const StepPlan& plan = scheduler.Schedule(now);
//   report scheduler.TakeExpired();
//   if (!plan.empty()) {
//     execute the plan; sample the entries whose outputs()[i].samples; Poison sequences whose
//     logits are NaN; scheduler.Commit(tokens); Finish the sequences that ended;
//   }
//
// Tokens may come one step late: Commit is given kLateToken for them as soon as the step is under
// way, the next step is scheduled, committed in its turn or not, and then Resolve brings what the
// first one sampled (and Finish or Poison end what it ended). What the second step computed for a
// sequence that has ended is worth nothing. The sequences' tokens are the same. A step with prompt
// rows is committed in time, when it is known whether they are NaN.
//
// Sequences are served by (priority, arrival). All running sequences move on in every step: by one
// token if they generate, by what the budget leaves if they are in their prompt. Waiting ones begin
// strictly in their order as soon as the blocks of all their known tokens are available, with one
// to spare for each running sequence that still grows. If a running sequence needs a block and none
// is left, the last in the order gives all of its blocks back, waits in its place, and is computed
// again later. So the first in the order never waits for another, and everybody becomes first.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // INVALID_ARGUMENT for an id in use, an empty prompt or nothing left to generate; OUT_OF_RANGE if
  // the sequence can never fit into the context or the KV cache; RESOURCE_EXHAUSTED if too many
  // wait. May be called while a step runs.
  absl::Status Add(NewSequence sequence);

  // The sequence ended, or nobody wants it any more: its blocks are given back at once (and handed
  // out by the next Schedule at the earliest). May be called while a step runs: Commit then ignores
  // the sequence. False if there is no such sequence.
  bool Finish(SequenceId id);

  // Finish for a sequence that computed NaN: none of its blocks is found in the prefix cache any
  // more, and each is zeroed, by a following plan's blocks_to_zero, before anybody else gets it.
  bool Poison(SequenceId id);

  // The next step. The reference, and outputs(), stay valid until the next call. Empty: nothing to
  // do, or nothing before Resolve has told the late tokens; no Commit. A plan may consist of
  // blocks_to_zero alone. A step that runs must have been committed.
  const StepPlan& Schedule(absl::Time now);

  // One for each of the plan's sequences.
  absl::Span<const StepOutput> outputs() const { return outputs_; }

  // The step has been executed. Exactly one token for each output that samples and has not been
  // finished since; those of finished sequences are ignored.
  void Commit(absl::Span<const SampledToken> sampled);

  // The late tokens of the first step that has any, except those of sequences that ended; tokens of
  // sequences that ended are ignored. After the step's Poison, before a Schedule that would follow
  // two steps with late tokens.
  void Resolve(absl::Span<const SampledToken> sampled);

  // Sequences whose deadline passed before they began; they are gone already. Each is reported
  // once.
  std::vector<SequenceId> TakeExpired();

  // Null if there is no such sequence (any more). Valid until the sequence is finished or expires.
  const Sequence* Find(SequenceId id) const;

  // No sequence waits or runs.
  bool idle() const { return sequences_.empty(); }
  SchedulerCounters counters() const;

 private:
  // What a step has left to give.
  struct Budget {
    int32_t tokens = 0;
    int32_t logit_rows = 0;
  };
  struct ExpiresBefore {
    bool operator()(const Sequence* a, const Sequence* b) const {
      if (a->deadline != b->deadline) return a->deadline < b->deadline;
      return a->arrival < b->arrival;
    }
  };

  absl::Status Validate(const NewSequence& sequence) const;
  void DropExpired(absl::Time now);
  bool MustResolve() const;
  Budget PlanRunning();
  void AdmitWaiting(Budget budget);
  bool TakeBlocks(Sequence* sequence, int32_t spare);
  bool Grow(Sequence* sequence);
  void Preempt(Sequence* sequence);
  void PlanSequence(Sequence* sequence, Budget* budget);
  void CommitSequence(Sequence* sequence, const SequenceStep& step, const StepOutput& output);
  void Publish(Sequence* sequence);
  void Remove(Sequence* sequence);

  const SchedulerOptions options_;
  BlockPool pool_;
  PrefixCache cache_;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // in the order of ServedBefore
  std::set<Sequence*, ServedBefore> waiting_;
  std::set<Sequence*, ExpiresBefore>
      expiring_;  // those of waiting_ that have a deadline and have not begun
  std::vector<SequenceId> expired_;
  uint64_t arrivals_ = 0;

  bool step_runs_ = false;
  bool preempted_ = false;  // in this Schedule
  StepPlan plan_;
  std::vector<StepOutput> outputs_;
  std::vector<Sequence*> planned_;  // null once finished

  uint64_t preemptions_ = 0;
  uint64_t prefix_query_tokens_ = 0;
  uint64_t prefix_hit_tokens_ = 0;
};

}  // namespace marcoro
