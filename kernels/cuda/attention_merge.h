// Merges what the blocks of attention_split.cu left in parts, in the order of the positions.
//
// The block that is the last to leave its parts of a run merges them, so no block waits for
// another, and no second launch for the first. Which one that is depends on timing, what it
// computes does not: it reads all parts again, its own included. A warp takes a query row, a lane
// four of its dimensions; sixteen parts are asked for before the first is merged, all of them for a
// context of 4096 that has the GPU for itself: one trip to the second-level cache. One warp that
// works alone is slow, so what does not depend on a dimension, where a part is and its factors, is
// found for all sixteen at a time, each by a lane.
#pragma once

#include "kernels/cuda/attention_pieces.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device/global_memory.h"
#include "kernels/cuda/device/shared_memory.h"

namespace marcoro::cuda {

// Whether this block is the last one to come to the run, to which as many come as have pieces of
// it. Called by the whole block, behind its stores; a barrier. The counter is that of the block
// where the run begins: only one run begins in a block and does not end there, its last.
MARCORO_DEVICE bool IsLastOfRun(const AttentionTask& task, const Shares& shares, PieceRange run,
                                const SharedArray<uint32_t>& answer) {
  const int first = shares.Owner(run.begin);
  const auto others = static_cast<uint32_t>(shares.Owner(run.end - 1) - first);
  SyncBlock();
  if (ThreadIndex() == 0) {
    uint32_t* counter = task.step.arrivals + first;
    const bool last = Arrive(counter) == others;
    if (last) *counter = 0;  // for the next kernel
    answer.Store(0, last ? 1 : 0);
  }
  SyncBlock();
  return answer.Load(0) != 0;
}

// The parts of a run: what the block where it begins has merged already, then the pieces of the
// blocks behind it.
struct RunParts {
  int first_block;
  int first_piece;  // of the blocks behind it
  int count;

  MARCORO_DEVICE RunParts(const Shares& shares, PieceRange run)
      : first_block(shares.Owner(run.begin)),
        first_piece(shares.Begin(first_block + 1)),
        count(1 + run.end - first_piece) {}

  // The number of a part among all that there is room for.
  MARCORO_DEVICE int NumberOf(const AttentionTask& task, const Shares& shares, int part) const {
    if (part == 0) return first_block * task.most_splits;
    const int piece = first_piece + part - 1;
    const int block = shares.Owner(piece);
    return block * task.most_splits + 1 + piece - shares.Begin(block);
  }
};

inline constexpr int kMergedAtOnce = 16;
inline constexpr int kLaneDims = 4;

// The largest value of the lanes up to the caller's, of which the first kMergedAtOnce count.
MARCORO_DEVICE float MaxUpToLane(float value) {
  MARCORO_UNROLL_LOOP
  for (int step = 1; step < kMergedAtOnce; step *= 2) {
    const float before = Shuffle(value, Lane() < step ? Lane() : Lane() - step);
    value = Max(value, before);
  }
  return value;
}

// One of the 16 query rows of a run, as a warp merges it: a lane's dimensions.
struct MergedRow {
  float max = Lowest();
  float sum = 0;
  Float4 out = {{0, 0, 0, 0}};

  // Adds `count` parts of the row, at most kMergedAtOnce; lane i < count passes the i-th's number.
  // What is missing of kMergedAtOnce is as a split of which nothing is seen.
  template <int kDims>
  MARCORO_DEVICE void Add(const AttentionTask& task, int number, int count, int row) {
    constexpr int64_t kFloats = PartialFloats(kDims);
    const int dim = Lane() * kLaneDims < kDims ? Lane() * kLaneDims : 0;
    const float* outs_of_first = task.partials + row * kDims + dim;
    Float4 outs[kMergedAtOnce];
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kMergedAtOnce; ++i) {
      const float* from = outs_of_first + Shuffle(number, i) * kFloats;
      outs[i] = {{0, 0, 0, 0}};
      if (i < count) outs[i] = *reinterpret_cast<const Float4*>(from);
    }
    const float* mine = task.partials + number * kFloats + kQueryTileRows * kDims + row;
    float part_max = Lowest();
    float part_sum = 0;
    if (Lane() < count) {
      part_max = mine[0];
      part_sum = mine[kQueryTileRows];
    }
    const float until = Max(max, MaxUpToLane(part_max));
    const float before = Shuffle(until, Lane() == 0 ? 0 : Lane() - 1);
    const MergeFactors factors = FactorsOf(Lane() == 0 ? max : before, part_max);
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kMergedAtOnce; ++i) {
      const MergeFactors of = {0, Shuffle(factors.first, i), Shuffle(factors.second, i)};
      sum = Merge(of, sum, Shuffle(part_sum, i));
      MARCORO_UNROLL_LOOP
      for (int e = 0; e < kLaneDims; ++e) out.value[e] = Merge(of, out.value[e], outs[i].value[e]);
    }
    max = Shuffle(until, kMergedAtOnce - 1);
  }
};

template <int kDims>
MARCORO_DEVICE MergedRow MergeRow(const AttentionTask& task, const Shares& shares,
                                  const RunParts& parts, int row) {
  MergedRow merged;
  MARCORO_KEEP_LOOP
  for (int first = 0; first < parts.count; first += kMergedAtOnce) {
    const int left = parts.count - first;
    const int count = left < kMergedAtOnce ? left : kMergedAtOnce;
    const int mine = Lane() < count ? first + Lane() : first;
    merged.Add<kDims>(task, parts.NumberOf(task, shares, mine), count, row);
  }
  return merged;
}

// Writes the outputs of a run of which all parts are there.
template <int kDims>
MARCORO_DEVICE void MergeRun(const AttentionTask& task, const Shares& shares, const Run& run) {
  const int left = run.sequence.query_rows - run.first_row;
  const int rows = left < kQueryTileRows ? left : kQueryTileRows;
  const RunParts parts(shares, run.pieces);
  MARCORO_KEEP_LOOP
  for (int row = Warp(); row < rows; row += BlockThreads() / kWarpThreads) {
    const MergedRow merged = MergeRow<kDims>(task, shares, parts, row);
    const float inverse = Divide(1.0f, merged.sum);
    const int token = (run.first_row + row) / task.group;
    const int head = run.kv_head * task.group + (run.first_row + row) % task.group;
    uint16_t* out = task.out + (run.sequence.first_row + token) * task.out_stride +
                    int64_t{head} * task.head_dim;
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kLaneDims; i += 2) {
      const int dim = Lane() * kLaneDims + i;
      if (dim >= task.head_dim) continue;
      *reinterpret_cast<uint32_t*>(out + dim) = PackBf16(
          Normalized(merged.out.value[i], inverse), Normalized(merged.out.value[i + 1], inverse));
    }
  }
}

}  // namespace marcoro::cuda
