// Merges what the blocks of attention_split.cu left in parts, in the order of the positions.
//
// The block that is the last to leave its parts of a run merges them, so no block waits for
// another, and no second launch for the first. Which one that is depends on timing, what it
// computes does not: it reads all parts again, its own included. A warp takes a query row, a lane
// four of its dimensions; sixteen parts are asked for before the first is merged, all of them for a
// context of 4096 that has the GPU for itself: one trip to the second-level cache.
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
  SyncBlock();
  if (ThreadIndex() == 0) {
    const int first = shares.Owner(run.begin);
    const auto others = static_cast<uint32_t>(shares.Owner(run.end - 1) - first);
    uint32_t* counter = task.step.arrivals + first;
    const bool last = Arrive(counter) == others;
    if (last) *counter = 0;  // for the next kernel
    answer.Store(0, last ? 1 : 0);
  }
  SyncBlock();
  return answer.Load(0) != 0;
}

struct SplitPart {
  float max;
  float sum;
  Float4 out;
};

inline constexpr int kLaneDims = 4;

struct MergedRow {
  float max = Lowest();
  float sum = 0;
  Float4 out = {{0, 0, 0, 0}};

  MARCORO_DEVICE void Add(const SplitPart& part) {
    const MergeFactors factors = FactorsOf(max, part.max);
    max = factors.max;
    sum = Merge(factors, sum, part.sum);
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kLaneDims; ++i) {
      out.value[i] = Merge(factors, out.value[i], part.out.value[i]);
    }
  }
};

template <int kDims>
MARCORO_DEVICE SplitPart LoadPart(const float* partial, int row) {
  SplitPart part = {
      partial[kQueryTileRows * kDims + row], partial[kQueryTileRows * (kDims + 1) + row], {}};
  const int dim = Lane() * kLaneDims;
  if (dim < kDims) part.out = *reinterpret_cast<const Float4*>(partial + row * kDims + dim);
  return part;
}

// Walks over the parts of a run: what the block where it begins has merged already, then the pieces
// of the blocks behind it.
class PartCursor {
 public:
  MARCORO_DEVICE PartCursor(const Shares& shares, PieceRange run)
      : shares_(shares), block_(shares.Owner(run.begin)) {
    left_ = 1 + run.end - shares.Begin(block_ + 1);
  }

  MARCORO_DEVICE int left() const { return left_; }
  MARCORO_DEVICE int block() const { return block_; }
  MARCORO_DEVICE int slot() const { return slot_; }
  MARCORO_DEVICE void Advance() {
    const bool ends_block =
        slot_ == 0 || slot_ == shares_.Begin(block_ + 1) - shares_.Begin(block_);
    block_ += ends_block ? 1 : 0;
    slot_ = ends_block ? 1 : slot_ + 1;
    --left_;
  }

 private:
  const Shares& shares_;
  int block_;
  int slot_ = 0;
  int left_;
};

// The run's parts of one of its 16 query rows.
template <int kDims>
MARCORO_DEVICE MergedRow MergeParts(const AttentionTask& task, const Shares& shares, PieceRange run,
                                    int row) {
  constexpr int kBatch = 16;
  MergedRow merged;
  PartCursor at(shares, run);
  while (at.left() > 0) {
    const int count = at.left() < kBatch ? at.left() : kBatch;
    SplitPart parts[kBatch];
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kBatch; ++i) {
      if (i >= count) continue;
      parts[i] = LoadPart<kDims>(PartialOf(task, at.block(), at.slot()), row);
      at.Advance();
    }
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kBatch; ++i) {
      if (i < count) merged.Add(parts[i]);
    }
  }
  return merged;
}

// Writes the outputs of a run of which all parts are there.
template <int kDims>
MARCORO_DEVICE void MergeRun(const AttentionTask& task, const Shares& shares, const Run& run) {
  const int left = run.sequence.query_rows - run.first_row;
  const int rows = left < kQueryTileRows ? left : kQueryTileRows;
  MARCORO_KEEP_LOOP
  for (int row = Warp(); row < rows; row += BlockThreads() / kWarpThreads) {
    const MergedRow merged = MergeParts<kDims>(task, shares, run.pieces, row);
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
