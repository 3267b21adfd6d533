// What the scheduler knows of one sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "worker/scheduler/block_pool.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

struct Sequence {
  explicit Sequence(BlockPool* pool) : blocks(pool) {}

  // Positions that are to be computed with the tokens sampled by now. A sequence that generates
  // nothing stops before its last token, which predicts nothing that is asked for (but computes at
  // least one).
  int32_t target() const {
    const auto known = static_cast<int32_t>(tokens.size());
    if (max_tokens > 0) return known;
    return known > 1 ? known - 1 : 1;
  }
  // Positions that are computed by its end: the last generated token is never computed.
  int32_t final_target() const {
    return max_tokens > 0 ? prompt_tokens + max_tokens - 1 : target();
  }
  // Logits at positions [prompt_logits_done, prompt_tokens - 1) are still owed.
  bool owes_prompt_logits() const {
    return wants_prompt_logits && prompt_logits_done < prompt_tokens - 1;
  }
  // Otherwise it waits. Only running sequences hold blocks.
  bool running() const { return blocks.size() > 0; }
  // Of tokens, those that are not late.
  int32_t known_tokens() const { return static_cast<int32_t>(tokens.size()) - late_tokens; }
  // All that it asked for is computed, and is to be looked at before it is finished: there is
  // nothing left to schedule.
  bool awaits_end() const {
    if (max_tokens == 0) return computed >= target();
    return late_tokens > 0 && generated_tokens() >= max_tokens;
  }
  int32_t generated_tokens() const { return static_cast<int32_t>(tokens.size()) - prompt_tokens; }

  SequenceId id = 0;
  uint64_t arrival = 0;  // serial: earlier is smaller
  int32_t priority = 0;  // higher goes first
  absl::Time deadline = absl::InfiniteFuture();
  uint64_t cache_salt = 0;
  bool wants_prompt_logits = false;

  std::vector<TokenId> tokens;  // prompt, then generated, the late ones included
  int32_t prompt_tokens = 0;
  int32_t late_tokens = 0;         // the last so many of tokens are kLateToken: not known yet
  int32_t max_tokens = 0;          // to generate; 0: none
  int32_t computed = 0;            // positions [0, computed) are in the KV cache
  int32_t published_blocks = 0;    // the first so many blocks are in the prefix cache
  int32_t prompt_logits_done = 0;  // logits at positions [0, prompt_logits_done) have been computed
  bool begun = false;              // has been scheduled at least once
  int32_t plan_index = -1;         // in the step that runs; -1: not in it
  BlockTable blocks;
};

// The order in which sequences are served: by priority, then by arrival.
struct ServedBefore {
  bool operator()(const Sequence* a, const Sequence* b) const {
    if (a->priority != b->priority) return a->priority > b->priority;
    return a->arrival < b->arrival;
  }
};

}  // namespace marcoro
