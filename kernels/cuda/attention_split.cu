// Attention of sequences with few query rows (decode): bound by reading the cache once.
//
// The pieces of work are (sequence, KV head, 16 query rows, split of 256 positions), counted in
// this order. Two blocks for each multiprocessor take equal runs of them, so neither ragged lengths
// nor a context that is shorter than the launch was sized for leave multiprocessors idle. A block
// that has all splits of some query rows merges them in registers and writes the output. Otherwise
// it leaves what it has: the block with the first splits leaves them merged, the others one by one,
// and the last block to do so merges all in the same order (attention_merge.h).
//
// What a step's arrays say, and keys and values of earlier steps, no kernel of the step writes: a
// block asks for them while the kernel ahead still runs, so that the trips to memory for lengths,
// block tables and most of the first piece overlap with it. Only the tile that the step wrote to,
// and the queries, are waited for.
//
// A piece of 128 dimensions is 128 KB. Its keys and half of its values are asked for at once, 96 KB
// (26 KB for each multiprocessor hide the latency), the rest when the keys have been read; another
// block is under way meanwhile on the same multiprocessor. A block has 4 warps. Each computes the
// scores of one tile, the four exchange their maxima and probabilities through shared memory, then
// each multiplies a part of the dimensions with the values: 36 products for 32 KB, where memory
// gives 1770 cycles. Four barriers for a piece.
#include <type_traits>

#include "kernels/cuda/attention_bf16.h"
#include "kernels/cuda/attention_copy.h"
#include "kernels/cuda/attention_fp8.h"
#include "kernels/cuda/attention_merge.h"
#include "kernels/cuda/attention_pieces.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device/dependent_launch.h"

namespace marcoro::cuda {
namespace {

constexpr int kWarps = kSplitTiles;
constexpr int kThreads = kWarps * kWarpThreads;

// Tiles of 16 dimensions that a warp has of the output.
constexpr int PairsOfWarp(int dims) { return (dims / kDepth + kWarps - 1) / kWarps; }

// Shared memory: six tiles (four of keys, two of values; then the other two of values where keys
// were), probabilities (16, 256), the rows' largest scores in each tile. In FP8 also the rows' sums
// of probabilities in each tile, and the scales of keys and values. At the end a word that tells
// all threads what one of them has found out.
template <typename Element, int kDims>
struct SplitMemory {
  static constexpr int kTiles = 6;
  static constexpr int kProbabilities = kTiles * TileBytes<Element>(kDims);
  static constexpr int kRow = RowElements<uint16_t>(kSplitPositions);
  static constexpr int kMaxima = kProbabilities + kQueryTileRows * kRow * 2;
  static constexpr int kSums = kMaxima + kSplitTiles * kQueryTileRows * 4;
  static constexpr int kScales = kSums + kSplitTiles * kQueryTileRows * 4;
  static constexpr int kAnswer = kIsCode<Element> ? kScales + 2 * kSplitPositions * 4 : kSums;
  static constexpr int kBytes = kAnswer + 16;

  MARCORO_DEVICE static SharedArray<Element> Keys(int t) {
    return {t * TileBytes<Element>(kDims), TileElements<Element>(kDims)};
  }
  MARCORO_DEVICE static SharedArray<Element> Values(int t) {
    return Keys(t < 2 ? kSplitTiles + t : t - 2);
  }
  MARCORO_DEVICE static SharedArray<uint16_t> Probabilities() {
    return {kProbabilities, kQueryTileRows * kRow};
  }
  MARCORO_DEVICE static SharedArray<float> Maxima() {
    return {kMaxima, kSplitTiles * kQueryTileRows};
  }
  MARCORO_DEVICE static SharedArray<float> Sums() { return {kSums, kSplitTiles * kQueryTileRows}; }
  MARCORO_DEVICE static SharedArray<float> KeyScales(int t) {
    return {kScales + t * kTilePositions * 4, kTilePositions};
  }
  MARCORO_DEVICE static SharedArray<float> ValueScales(int t) { return KeyScales(kSplitTiles + t); }
  MARCORO_DEVICE static SharedArray<uint32_t> Answer() { return {kAnswer, 1}; }
};

template <typename Element, int kDims, int kPairs>
MARCORO_DEVICE void StorePartial(const RunningSplit<kPairs>& split, float* partial) {
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    const int row = Lane() / 4 + half * 8;
    MARCORO_UNROLL_LOOP
    for (int n = 0; n < kPairs * 2; ++n) {
      const int pair = Warp() + n / 2 * kWarps;
      if (pair >= kDims / kDepth) break;
      const TwoOutputs two =
          OutputsOf<Element>(split.out[n / 2 * 2], split.out[n / 2 * 2 + 1], half, n % 2);
      *reinterpret_cast<Words2*>(partial + row * kDims + pair * kDepth + two.dim) = {
          FloatToBits(two.first), FloatToBits(two.second)};
    }
    if (Warp() == 0 && Lane() % 4 == 0) {
      partial[kQueryTileRows * kDims + row] = split.max[half];
      partial[kQueryTileRows * (kDims + 1) + row] = split.sum[half * 2];
    }
  }
}

// One piece, as a block computes it.
template <typename Element, int kDims>
class SplitPiece {
 public:
  static constexpr int kPairs = PairsOfWarp(kDims);
  using Memory = SplitMemory<Element, kDims>;

  MARCORO_DEVICE SplitPiece(const AttentionTask& task, const QuerySequence& sequence,
                            const QueryTile& tile, int kv_head, int split)
      : task_(task),
        sequence_(sequence),
        tile_(tile),
        kv_head_(kv_head),
        begin_(split * kSplitPositions),
        loaded_(tile.any) {
    if (loaded_.low < begin_) loaded_.low = begin_;
    if (loaded_.high >= begin_ + kSplitPositions) loaded_.high = begin_ + kSplitPositions - 1;
  }

  // Asks for the keys and the first values: for those of earlier steps at once, for the others when
  // the kernel ahead has written them.
  MARCORO_DEVICE void BeginCopies() const {
    SyncBlock();  // nobody reads the piece before this one any more
    MARCORO_KEEP_LOOP
    for (int step = 0; step < 2; ++step) {
      const bool old = step == 0;
      if (!old) WaitForKernelAhead();
      if (Seen(Warp()) && IsOld(Warp()) == old) CopyKeys(Warp());
      CommitCopies();
      MARCORO_KEEP_LOOP
      for (int t = 0; t < 2; ++t) {
        if (IsOld(t) == old) CopyValues(t);
      }
      CommitCopies();
    }
  }

  // Behind BeginCopies.
  MARCORO_DEVICE void Compute(const uint32_t (&queries)[kDims / kDepth][4],
                              RunningSplit<kPairs>& split) const {
    split.Clear();
    if (loaded_.low > loaded_.high) {
      WaitCopies<0>();
      return;
    }
    // Of the four groups, the keys' is the first or the third.
    if (IsOld(Warp())) {
      WaitCopies<3>();
    } else {
      WaitCopies<1>();
    }
    SyncWarp();
    float scores[kScoreTiles][4];
    StoreMaxima(queries, scores);
    SyncBlock();  // the maxima are there, and nobody reads keys any more
    MARCORO_KEEP_LOOP
    for (int t = 2; t < kSplitTiles; ++t) CopyValues(t);
    CommitCopies();
    StoreProbabilities(scores);
    MARCORO_KEEP_LOOP
    for (int t = 0; t < kSplitTiles; ++t) {
      if (t == 0) WaitCopies<1>();
      if (t == 2) WaitCopies<0>();
      if (t % 2 == 0) SyncBlock();
      if (Seen(t)) AddTile(t, split);
    }
  }

 private:
  MARCORO_DEVICE int Begin(int t) const { return begin_ + t * kTilePositions; }
  MARCORO_DEVICE bool Seen(int t) const {
    return Overlap({Begin(t), Begin(t) + kTilePositions - 1}, loaded_);
  }
  // Whether all of the tile was written before this step.
  MARCORO_DEVICE bool IsOld(int t) const {
    return Begin(t) + kTilePositions <= sequence_.first_position;
  }

  // Asks for the keys of the warp's tile; in FP8 also for the scales of its keys and values.
  MARCORO_DEVICE void CopyKeys(int t) const {
    CopyTile<kDims, kWarpThreads>(task_, sequence_.blocks, KeysOf<Element>(task_, kv_head_),
                                  Begin(t), loaded_, Lane(), Memory::Keys(t));
    if constexpr (kIsCode<Element>) {
      CopyScales(task_, sequence_.blocks, KeyScalesOf(task_, kv_head_), Begin(t), loaded_, Lane(),
                 Memory::KeyScales(t));
      CopyScales(task_, sequence_.blocks, ValueScalesOf(task_, kv_head_), Begin(t), loaded_,
                 Lane() - kScaleThreads, Memory::ValueScales(t));
    }
  }

  MARCORO_DEVICE void CopyValues(int t) const {
    if (!Seen(t)) return;
    CopyTile<kDims, kThreads>(task_, sequence_.blocks, ValuesOf<Element>(task_, kv_head_, 0),
                              Begin(t), loaded_, ThreadIndex(), Memory::Values(t));
  }

  // Computes the scores of the warp's tile, and tells their maxima.
  MARCORO_DEVICE void StoreMaxima(const uint32_t (&queries)[kDims / kDepth][4],
                                  float (&scores)[kScoreTiles][4]) const {
    float max[2] = {Lowest(), Lowest()};
    ClearScores(scores);
    if (Seen(Warp())) {
      MARCORO_UNROLL_LOOP
      for (int depth = 0; depth < kDims / kDepth; ++depth) {
        AddScores<kDims>(queries[depth], depth, Memory::Keys(Warp()), scores);
      }
      if constexpr (kIsCode<Element>) ScaleScores(Memory::KeyScales(Warp()), scores);
      HideScores(tile_, Begin(Warp()), scores);
      LargestScores(scores, task_.scale, max);
    }
    if (Lane() % 4 != 0) return;
    MARCORO_UNROLL_LOOP
    for (int half = 0; half < 2; ++half) {
      Memory::Maxima().Store(Warp() * kQueryTileRows + Lane() / 4 + half * 8, max[half]);
    }
  }

  // Those of tile t for the lane's rows.
  MARCORO_DEVICE void LoadMaxima(int t, float (&max)[2]) const {
    MARCORO_UNROLL_LOOP
    for (int half = 0; half < 2; ++half) {
      max[half] = Memory::Maxima().Load(t * kQueryTileRows + Lane() / 4 + half * 8);
    }
  }

  MARCORO_DEVICE void StoreProbabilities(const float (&scores)[kScoreTiles][4]) const {
    if (!Seen(Warp())) return;
    float base[2] = {Lowest(), Lowest()};
    for (int t = 0; t <= Warp(); ++t) {
      float max[2];
      LoadMaxima(t, max);
      base[0] = Max(base[0], max[0]);
      base[1] = Max(base[1], max[1]);
    }
    base[0] = Base(base[0]);
    base[1] = Base(base[1]);
    const SharedArray<uint16_t> to = Memory::Probabilities();
    float sums[4] = {};
    MARCORO_UNROLL_LOOP
    for (int depth = 0; depth < kTileDepths; ++depth) {
      uint32_t a[4];
      if constexpr (kIsCode<Element>) {
        ScaledProbabilities(scores, depth, task_.scale, base, Memory::ValueScales(Warp()), a, sums);
      } else {
        Probabilities(scores, depth, task_.scale, base, a);
      }
      MARCORO_UNROLL_LOOP
      for (int i = 0; i < 4; ++i) {
        const int row = Lane() / 4 + i % 2 * 8;
        const int position = Warp() * kTilePositions + depth * kDepth + i / 2 * 8 + Lane() % 4 * 2;
        to.StoreAs<uint32_t>(row * Memory::kRow + position, a[i]);
      }
    }
    if constexpr (kIsCode<Element>) {
      if (Lane() % 4 != 0) return;
      const int row = Warp() * kQueryTileRows + Lane() / 4;
      Memory::Sums().Store(row, sums[0]);
      Memory::Sums().Store(row + 8, sums[2]);
    }
  }

  // Whether a row could meet a value that it does not see but that is not cleared.
  MARCORO_DEVICE bool RowsDiffer(int t) const {
    const int end = Begin(t) + kTilePositions - 1;
    const int low = loaded_.low > Begin(t) ? loaded_.low : Begin(t);
    const int high = loaded_.high < end ? loaded_.high : end;
    return low < tile_.all.low || high > tile_.all.high;
  }

  // The probabilities of 16 positions of tile t, as a left factor.
  MARCORO_DEVICE void LoadProbabilities(int t, int depth, uint32_t (&a)[4]) const {
    const int row = Lane() / 8 % 2 * 8 + Lane() % 8;
    const int position = t * kTilePositions + depth * kDepth + Lane() / 16 * 8;
    LoadMatrices(a, Memory::Probabilities().Address(row * Memory::kRow + position));
  }

  MARCORO_DEVICE void AddTile(int t, RunningSplit<kPairs>& split) const {
    float max[2];
    LoadMaxima(t, max);
    split.Rebase(max);
    if constexpr (kIsCode<Element>) {
      const int sums = t * kQueryTileRows + Lane() / 4;
      split.AddToSums(Memory::Sums().Load(sums), Memory::Sums().Load(sums + 8));
      MARCORO_UNROLL_LOOP
      for (int depth = 0; depth < kTileDepths; ++depth) {
        uint32_t a[4];
        LoadProbabilities(t, depth, a);
        AddValues<kDims>(a, depth, Memory::Values(t), Warp(), kWarps, split);
      }
    } else {
      AddBf16Values(t, split);
    }
  }

  MARCORO_DEVICE void AddBf16Values(int t, RunningSplit<kPairs>& split) const {
    const SharedArray<uint16_t> values = Memory::Values(t);
    uint32_t a[4];
    if (RowsDiffer(t) && !AllFinite<kDims>(values)) {
      MARCORO_KEEP_LOOP
      for (int depth = 0; depth < kTileDepths; ++depth) {
        LoadProbabilities(t, depth, a);
        AddValues<kDims, kPairs, true>(task_, tile_, a, depth, Begin(t), values, Warp(), kWarps,
                                       split);
      }
      return;
    }
    MARCORO_UNROLL_LOOP
    for (int depth = 0; depth < kTileDepths; ++depth) {
      LoadProbabilities(t, depth, a);
      AddValues<kDims, kPairs, false>(task_, tile_, a, depth, Begin(t), values, Warp(), kWarps,
                                      split);
    }
  }

  const AttentionTask& task_;
  const QuerySequence& sequence_;
  const QueryTile& tile_;
  int kv_head_;
  int begin_;       // position
  Visible loaded_;  // what the query rows see of the split
};

template <typename Element, int kDims>
MARCORO_DEVICE void LoadAllQueries(const AttentionTask& task, const QueryTile& tile,
                                   uint32_t (&queries)[kDims / kDepth][4]) {
  MARCORO_UNROLL_LOOP
  for (int depth = 0; depth < kDims / kDepth; ++depth) {
    if constexpr (kIsCode<Element>) {
      LoadQueriesForCodes(task, tile, depth, queries[depth]);
    } else {
      LoadQueries(task, tile, depth, queries[depth]);
    }
  }
}

// Merges, if nothing of them is missing, the runs that a block has not all of: the one that it
// ended with, `run`, and the one that it began with.
template <typename Element, int kDims>
MARCORO_DEVICE void MergeSharedRuns(const AttentionTask& task, const Shares& shares, Run run) {
  const PieceRange mine = shares.Pieces(BlockIndexX());
  MARCORO_KEEP_LOOP
  while (true) {
    const bool shared = run.pieces.begin < mine.begin || run.pieces.end > mine.end;
    if (shared && IsLastOfRun(task, shares, run.pieces, SplitMemory<Element, kDims>::Answer())) {
      MergeRun<kDims>(task, shares, run);
    }
    if (run.pieces.begin <= mine.begin) return;
    run = FindRun(task, mine.begin);
  }
}

template <typename Element, int kDims>
MARCORO_KERNEL(kThreads, 2)
AttendSplitsKernel(AttentionTask task) {
  LaunchDependents();
  const int padding = FindPadding(task, BlockIndexX());
  const Shares shares = DealPieces(task);
  const PieceRange mine = shares.Pieces(BlockIndexX());
  Run run = {};
  RunningSplit<PairsOfWarp(kDims)> total;
  total.Clear();
  MARCORO_KEEP_LOOP
  for (int piece = mine.begin; piece < mine.end; ++piece) {
    if (piece == mine.begin || piece == run.pieces.end) run = FindRun(task, piece);
    const QueryTile tile = MakeQueryTile(task, run.sequence, run.kv_head, run.first_row);
    const SplitPiece<Element, kDims> current(task, run.sequence, tile, run.kv_head,
                                             run.first_split + piece - run.pieces.begin);
    current.BeginCopies();
    uint32_t queries[kDims / kDepth][4];
    LoadAllQueries<Element, kDims>(task, tile, queries);
    RunningSplit<PairsOfWarp(kDims)> split;
    current.Compute(queries, split);
    if (run.pieces.begin < mine.begin) {
      const int slot = 1 + piece - mine.begin;
      StorePartial<Element, kDims>(split, PartialOf(task, BlockIndexX(), slot));
      continue;
    }
    if (piece == run.pieces.begin) total.Clear();
    MergeInto(total, split);
    if (piece == run.pieces.end - 1) {
      StoreRows<Element, kDims>(task, tile, 0, Warp(), kWarps, total);
    } else if (piece == mine.end - 1) {
      StorePartial<Element, kDims>(total, PartialOf(task, BlockIndexX(), 0));
    }
  }
  WaitForKernelAhead();  // of blocks that have no piece
  if (mine.begin < mine.end) MergeSharedRuns<Element, kDims>(task, shares, run);
  ClearPadding(task, padding);
}

template <typename Element, int kDims>
void LaunchSplits(Stream stream, const AttentionTask& task) {
  Launch(stream,
         {.grid_x = task.split_blocks,
          .threads = kThreads,
          .shared_bytes = SplitMemory<Element, kDims>::kBytes,
          .overlaps_kernel_ahead = true},
         AttendSplitsKernel<Element, kDims>, task);
}

// Calls run with the dimensions that are computed for a head of head_dim, as a constant.
template <typename Run>
auto WithPaddedHeadDim(int head_dim, const Run& run) {
  switch (PaddedHeadDim(head_dim)) {
    case 32:
      return run(std::integral_constant<int, 32>());
    case 64:
      return run(std::integral_constant<int, 64>());
    case 96:
      return run(std::integral_constant<int, 96>());
    default:
      return run(std::integral_constant<int, 128>());
  }
}

template <typename Element>
int SharedBytes(int head_dim) {
  if (head_dim % kChunkElements<Element> != 0 || head_dim > 128) return 0;
  return WithPaddedHeadDim(
      head_dim, [](auto dims) { return SplitMemory<Element, decltype(dims)::value>::kBytes; });
}

}  // namespace

int SplitSharedBytes(int head_dim, KvFormat format) {
  return format == KvFormat::kFp8 ? SharedBytes<uint8_t>(head_dim)
                                  : SharedBytes<uint16_t>(head_dim);
}

void AttendSplits(Stream stream, const AttentionTask& task) {
  WithPaddedHeadDim(task.head_dim, [&](auto dims) {
    if (task.format == KvFormat::kFp8) {
      LaunchSplits<uint8_t, decltype(dims)::value>(stream, task);
    } else {
      LaunchSplits<uint16_t, decltype(dims)::value>(stream, task);
    }
  });
}

}  // namespace marcoro::cuda
