// Merges what attention_split.cu left in parts, in the order of the positions, and clears the
// outputs of padding rows.
//
// A warp takes a head of a row, a lane four of its dimensions. Parts are 8 KB apart at 128
// dimensions and take 1/60 of the time that reading the cache for them took; sixteen are
// asked for before the first is merged.
#include "kernels/cuda/attention_pieces.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device/dependent_launch.h"

namespace marcoro::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpThreads;
constexpr int kBatch = 16;
constexpr int kLaneDims = 4;

struct Part {
  float max;
  float sum;
  Float4 out;
};

struct MergedRow {
  float max = Lowest();
  float sum = 0;
  Float4 out = {{0, 0, 0, 0}};

  MARCORO_DEVICE void Add(const Part& part) {
    const MergeFactors factors = FactorsOf(max, part.max);
    max = factors.max;
    sum = Merge(factors, sum, part.sum);
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kLaneDims; ++i) {
      out.value[i] = Merge(factors, out.value[i], part.out.value[i]);
    }
  }
};

// The pieces of one head of a row.
struct PiecesOfRow {
  int begin;
  int end;
  int row;  // of the 16 of these pieces
};

MARCORO_DEVICE PiecesOfRow FindPieces(const AttentionTask& task, int row, int head) {
  const int sequence = task.step.row_sequences[row];
  const SplitCounts counts = CountSplits(task, sequence);
  const int token = row - task.step.first_rows[sequence];
  const int query_row = token * task.group + head % task.group;
  const int run = head / task.group * counts.tiles + query_row / kQueryTileRows;
  const int begin = PiecesBefore(task, sequence) + run * counts.splits;
  return {begin, begin + counts.splits, query_row % kQueryTileRows};
}

MARCORO_DEVICE Part LoadPart(const AttentionTask& task, int block, int slot, int row) {
  const int dims = PaddedHeadDim(task.head_dim);
  const float* partial = PartialOf(task, block, slot);
  Part part = {
      partial[kQueryTileRows * dims + row], partial[kQueryTileRows * (dims + 1) + row], {}};
  const int dim = Lane() * kLaneDims;
  if (dim < dims) part.out = *reinterpret_cast<const Float4*>(partial + row * dims + dim);
  return part;
}

// What the block `first` merged already, then the pieces of the blocks behind it.
MARCORO_DEVICE MergedRow MergeParts(const AttentionTask& task, const Shares& shares, int first,
                                    const PiecesOfRow& pieces) {
  MergedRow merged;
  merged.Add(LoadPart(task, first, 0, pieces.row));
  for (int piece = shares.Begin(first + 1); piece < pieces.end; piece += kBatch) {
    Part parts[kBatch];
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kBatch; ++i) {
      if (piece + i >= pieces.end) continue;
      const int block = shares.Owner(piece + i);
      parts[i] = LoadPart(task, block, 1 + piece + i - shares.Begin(block), pieces.row);
    }
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kBatch; ++i) {
      if (piece + i < pieces.end) merged.Add(parts[i]);
    }
  }
  return merged;
}

MARCORO_KERNEL(kThreads, 3) MergeSplitsKernel(AttentionTask task) {
  LaunchDependents();
  WaitForKernelAhead();
  const int row = BlockIndexX();
  const int head = BlockIndexY() * kWarps + Warp();
  if (head >= task.heads) return;
  uint16_t* out = task.out + row * task.out_stride + int64_t{head} * task.head_dim;
  if (task.step.positions[row] < 0) {
    for (int dim = Lane(); dim < task.head_dim; dim += kWarpThreads) out[dim] = 0;
    return;
  }
  if (CountSplits(task, task.step.row_sequences[row]).splits < 2) return;
  const Shares shares = DealPieces(task);
  const PiecesOfRow pieces = FindPieces(task, row, head);
  const int first = shares.Owner(pieces.begin);
  if (pieces.end <= shares.Begin(first + 1)) return;  // that block wrote the output
  const MergedRow merged = MergeParts(task, shares, first, pieces);
  const float inverse = Divide(1.0f, merged.sum);
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kLaneDims; i += 2) {
    const int dim = Lane() * kLaneDims + i;
    if (dim >= task.head_dim) continue;
    *reinterpret_cast<uint32_t*>(out + dim) = PackBf16(
        Normalized(merged.out.value[i], inverse), Normalized(merged.out.value[i + 1], inverse));
  }
}

}  // namespace

void MergeSplits(Stream stream, const AttentionTask& task) {
  Launch(stream,
         {.grid_x = task.step.rows,
          .grid_y = (task.heads + kWarps - 1) / kWarps,
          .threads = kThreads,
          .overlaps_kernel_ahead = true},
         MergeSplitsKernel, task);
}

}  // namespace marcoro::cuda
