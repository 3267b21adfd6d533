// What the kernels of attention share: what they are asked, and how sequences are cut into work.
//
// A query row is one head of one token; those of a sequence that read the same KV head are counted
// token by token, head by head. What a row computes is a function of its query and of the positions
// that it sees, in one order (attention_tile.h), so which kernel computes it, together with which
// others, is a matter of speed alone:
//   - attention_split.cu takes sequences of few query rows (decode), a block a split of the cache;
//   - attention_walk.cu takes the others (prefill), a block 128 query rows and all that they see.
#pragma once

#include "kernels/cuda/device/platform.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {

// Positions of a tile and of a split, both counted from position 0.
inline constexpr int kTilePositions = 64;
inline constexpr int kSplitTiles = 4;
inline constexpr int kSplitPositions = kTilePositions * kSplitTiles;
// Query rows of a matrix product.
inline constexpr int kQueryTileRows = 16;

struct AttentionTask {
  const uint16_t* q = nullptr;  // rows begin at even elements; of `out` too
  int64_t q_stride = 0;
  uint16_t* out = nullptr;
  int64_t out_stride = 0;
  const char* cache = nullptr;
  KvFormat format = KvFormat::kActivation;
  DeviceStep step;
  int heads = 0;
  int kv_heads = 0;
  int group = 0;  // heads / kv_heads
  int head_dim = 0;
  int window = 0;
  float scale = 0;  // log2(e) / sqrt(head_dim)
  // Sequences of at most so many query rows are attention_split.cu's.
  int split_rows = 0;
  int split_blocks = 0;  // that share its work; at most ArrivalCounters()
  int most_splits = 0;   // of a sequence
  float* partials = nullptr;
};

// The two parts of an attention, to be launched in this order: the first if split_rows > 0, the
// second if it can have work. Padding rows are cleared by the first, without it by the second.
void AttendSplits(Stream stream, const AttentionTask& task);
void AttendWalks(Stream stream, const AttentionTask& task);

// Shared memory that attention_split.cu needs; 0 if it does not take heads of so many dimensions.
int SplitSharedBytes(int head_dim, KvFormat format);

// The multiple of 16 that the kernels' fragments cover: 32, 64, 96, 128, or 256.
constexpr int PaddedHeadDim(int head_dim) {
  return head_dim > 128 ? kMostHeadDim : (head_dim + 31) / 32 * 32;
}

// What a split of 16 query rows leaves to be merged: (16, dims) sums, 16 largest scores, 16 sums of
// probabilities.
constexpr int PartialFloats(int dims) { return kQueryTileRows * (dims + 2); }

// Positions [low, high].
struct Visible {
  int low;
  int high;
};

MARCORO_DEVICE Visible VisibleFrom(int position, int window) {
  return {window > 0 && position >= window ? position - window + 1 : 0, position};
}
MARCORO_DEVICE bool Overlap(Visible a, Visible b) {
  return a.low <= b.high && b.low <= a.high && a.low <= a.high && b.low <= b.high;
}

// A sequence of the step, as one KV head's query rows see it.
struct QuerySequence {
  int first_row;  // of the step
  int first_position;
  int query_rows;
  const int32_t* blocks;
};

MARCORO_DEVICE int QueryRows(const AttentionTask& task, int sequence) {
  return task.step.tokens[sequence] * task.group;
}

MARCORO_DEVICE QuerySequence SequenceOf(const AttentionTask& task, int sequence) {
  return {task.step.first_rows[sequence], task.step.first_positions[sequence],
          QueryRows(task, sequence), task.step.blocks + task.step.first_blocks[sequence]};
}

// All that the query rows [first, last] see.
MARCORO_DEVICE Visible SeenByAny(const AttentionTask& task, const QuerySequence& sequence,
                                 int first, int last) {
  return {VisibleFrom(sequence.first_position + first / task.group, task.window).low,
          sequence.first_position + last / task.group};
}

// The first padding row, from `row` on, of those that fall to this block: every GridX()-th; the
// step's number of rows if there is none.
MARCORO_DEVICE int FindPadding(const AttentionTask& task, int row) {
  while (row < task.step.rows && task.step.positions[row] >= 0) row += GridX();
  return row;
}

// Clears the outputs of padding rows, from the given one on.
MARCORO_DEVICE void ClearPadding(const AttentionTask& task, int row) {
  for (; row < task.step.rows; row = FindPadding(task, row + GridX())) {
    uint16_t* out = task.out + row * task.out_stride;
    for (int i = ThreadIndex(); i < task.heads * task.head_dim; i += BlockThreads()) out[i] = 0;
  }
}

// A piece of work, of which each sequence of a step has some.
struct Work {
  int sequence;  // -1: there is no such piece
  int piece;     // of the sequence
};

// The index-th piece where sequence s has count(s). Called by whole warps.
template <typename Count>
MARCORO_DEVICE Work FindWork(int sequences, int index, const Count& count) {
  for (int begin = 0; begin < sequences; begin += kWarpThreads) {
    const int sequence = begin + Lane();
    const int mine = sequence < sequences ? count(sequence) : 0;
    int until = mine;  // of this warp's sequences up to the lane's
    MARCORO_UNROLL_LOOP
    for (int step = 1; step < kWarpThreads; step *= 2) {
      const int before = Shuffle(until, Lane() < step ? Lane() : Lane() - step);
      if (Lane() >= step) until += before;
    }
    const uint32_t beyond = Ballot(index < until);
    if (beyond != 0) {
      int lane = 0;
      while ((beyond >> lane & 1u) == 0) ++lane;
      return {begin + lane, index - Shuffle(until - mine, lane)};
    }
    index -= Shuffle(until, kWarpThreads - 1);
  }
  return {-1, 0};
}

}  // namespace marcoro::cuda
