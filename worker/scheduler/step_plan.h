// What one engine step computes: decided by the scheduler on rank 0, carried to the peers, executed
// by the model on all ranks.
#pragma once

#include <cstdint>
#include <vector>

namespace marcoro {

using SequenceId = uint64_t;
using TokenId = int32_t;
using BlockId = int32_t;

// One sequence's part of the step: its next `token_count` tokens, at positions [position, position
// + token_count). Tokens and block tables of all sequences lie side by side in StepPlan, in the
// order of the sequences.
struct SequenceStep {
  SequenceId id = 0;        // known on rank 0 only; peers do not need it
  int32_t position = 0;     // of the first new token
  int32_t token_count = 0;  // at least 1
  int32_t block_count = 0;  // entries of the block table: enough for position + token_count tokens
  int32_t logit_rows = 0;   // the last so many tokens need logits: 0 (middle of a prompt), 1
                            // (sampling) or more (prompt logprobs)
};

// What stands for a token that has been sampled but is not yet known on the host.
inline constexpr TokenId kLateToken = -1;

// A token of a step that only the device knows: the one that it sampled last for the sequence.
struct LateEntry {
  int32_t index = 0;  // in StepPlan::tokens, where a 0 stands for it
  SequenceId id = 0;
};

struct StepPlan {
  std::vector<SequenceStep> sequences;
  std::vector<TokenId> tokens;          // Σ token_count
  std::vector<BlockId> blocks;          // Σ block_count
  std::vector<BlockId> blocks_to_zero;  // filled with zeros before the step
  // Known on rank 0 only: its device has sampled them, and passes them on to its peers' devices.
  std::vector<LateEntry> late;

  bool empty() const { return sequences.empty() && blocks_to_zero.empty(); }
  void Clear() {
    sequences.clear();
    tokens.clear();
    blocks.clear();
    blocks_to_zero.clear();
    late.clear();
  }
};

}  // namespace marcoro
