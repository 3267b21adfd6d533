// How the work of attention_split.cu is cut into pieces, dealt to blocks, and what they leave to be
// merged.
//
// The pieces are (sequence, KV head, 16 query rows, split of 256 positions), counted in this order.
// Blocks take equal runs of them.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/thread.h"

namespace marcoro::cuda {

// Pieces [begin, end).
struct PieceRange {
  int begin;
  int end;
};

// How pieces are dealt to blocks.
struct Shares {
  int quotient;
  int rest;  // so many blocks, the first, have one more

  MARCORO_DEVICE int Begin(int block) const {
    return block * quotient + (block < rest ? block : rest);
  }
  MARCORO_DEVICE PieceRange Pieces(int block) const { return {Begin(block), Begin(block + 1)}; }
  MARCORO_DEVICE int Owner(int piece) const {
    const int large = rest * (quotient + 1);
    return piece < large ? piece / (quotient + 1) : rest + (piece - large) / quotient;
  }
};

// The splits that a sequence's query rows see, and its 16s of query rows.
struct SplitCounts {
  int first_split;
  int splits;
  int tiles;
};

MARCORO_DEVICE SplitCounts CountSplits(const AttentionTask& task, int sequence) {
  const int rows = QueryRows(task, sequence);
  if (rows == 0 || rows > task.split_rows) return {0, 0, 0};
  const int position = task.step.first_positions[sequence];
  const int first = VisibleFrom(position, task.window).low / kSplitPositions;
  const int last = (position + rows / task.group - 1) / kSplitPositions;
  return {first, last - first + 1, (rows + kQueryTileRows - 1) / kQueryTileRows};
}
MARCORO_DEVICE int Pieces(const AttentionTask& task, int sequence) {
  const SplitCounts counts = CountSplits(task, sequence);
  return task.kv_heads * counts.tiles * counts.splits;
}

// Those of sequences [0, sequence). Called by whole warps.
MARCORO_DEVICE int PiecesBefore(const AttentionTask& task, int sequence) {
  int pieces = 0;
  for (int s = Lane(); s < sequence; s += kWarpThreads) pieces += Pieces(task, s);
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) pieces += ShuffleXor(pieces, mask);
  return pieces;
}

MARCORO_DEVICE Shares DealPieces(const AttentionTask& task) {
  const int pieces = PiecesBefore(task, task.step.sequences);
  return {pieces / task.split_blocks, pieces % task.split_blocks};
}

// The pieces of 16 query rows.
struct Run {
  PieceRange pieces;
  int first_split;
  QuerySequence sequence;
  int kv_head;
  int first_row;  // of the sequence's query rows
};

// The run that a piece belongs to. Called by whole warps.
MARCORO_DEVICE Run FindRun(const AttentionTask& task, int piece) {
  const Work work = FindWork(task.step.sequences, piece, [&](int s) { return Pieces(task, s); });
  const SplitCounts counts = CountSplits(task, work.sequence);
  const int run = work.piece / counts.splits;
  const int begin = piece - work.piece % counts.splits;
  return {{begin, begin + counts.splits},
          counts.first_split,
          SequenceOf(task, work.sequence),
          run / counts.tiles,
          run % counts.tiles * kQueryTileRows};
}

// Where a block leaves what is to be merged: slot 0 is for query rows that begin in this block,
// slot 1 + i for its i-th piece if its query rows began in another block.
MARCORO_DEVICE float* PartialOf(const AttentionTask& task, int block, int slot) {
  return task.partials +
         (int64_t{block} * task.most_splits + slot) * PartialFloats(PaddedHeadDim(task.head_dim));
}

}  // namespace marcoro::cuda
