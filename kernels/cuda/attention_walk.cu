// Attention of sequences with many query rows (prefill), and of head dimensions that
// attention_split.cu does not take.
//
// A block takes 128 query rows of a sequence and a KV head, a warp 16 of them, and walks over the
// tiles that any of them sees: while one tile is computed, the next is copied. Both the split's
// sums and those of the splits before it live in registers (64 + 64 for 128 dimensions), beside the
// queries (32) and a tile's scores (32): 8 warps fill a multiprocessor. For 16 rows and 64
// positions a warp issues 132 products and 64 matrix loads, 32 KB: at 128 bytes a cycle shared
// memory allows half of the matrix peak, about what this kind of product reaches on sm_90 at all. A
// tile of 32 KB of keys and values serves 128 rows, 16 bytes a cycle from the second-level cache at
// that speed. The last blocks of a sequence see most and begin first.
//
// Head dimensions above 128 take twice: each block computes all scores but half of the output's
// dimensions, and reads its queries again for each tile (from the first-level cache).
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device/dependent_launch.h"

namespace marcoro::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpThreads;
constexpr int kBlockRows = kWarps * kQueryTileRows;

// The dimensions that a block computes of the output.
constexpr int ValueDims(int dims) { return dims > 128 ? dims / 2 : dims; }

// Whether heads of any even number of dimensions are taken, not multiples of 8 only. For 128 there
// is no register to spare.
constexpr bool TakesPairs(int dims) { return dims != 128; }
constexpr int DimsToCompute(int head_dim) {
  const int padded = PaddedHeadDim(head_dim);
  return head_dim % kChunk != 0 && !TakesPairs(padded) ? kMostHeadDim : padded;
}

// Shared memory: two tiles of keys, then two of values.
template <int kDims>
struct Tiles {
  static constexpr int kKeys = TileElements(kDims);
  static constexpr int kValues = TileElements(ValueDims(kDims));
  static constexpr int kBytes = 2 * (kKeys + kValues) * 2;

  MARCORO_DEVICE static SharedArray<uint16_t> Keys(int t) { return {t % 2 * kKeys * 2, kKeys}; }
  MARCORO_DEVICE static SharedArray<uint16_t> Values(int t) {
    return {(2 * kKeys + t % 2 * kValues) * 2, kValues};
  }
};

// A warp's queries: in registers where there is room.
template <int kDims>
class Queries {
 public:
  MARCORO_DEVICE Queries(const AttentionTask& task, const QueryTile& tile)
      : task_(task), tile_(tile) {
    if constexpr (kHeld) {
      MARCORO_UNROLL_LOOP
      for (int depth = 0; depth < kDims / kDepth; ++depth) {
        LoadQueries(task, tile, depth, held_[depth]);
      }
    }
  }

  MARCORO_DEVICE void Score(const SharedArray<uint16_t>& keys,
                            float (&scores)[kScoreTiles][4]) const {
    ClearScores(scores);
    if constexpr (kHeld) {
      MARCORO_UNROLL_LOOP
      for (int depth = 0; depth < kDims / kDepth; ++depth) {
        AddScores<kDims>(held_[depth], depth, keys, scores);
      }
    } else {
      for (int depth = 0; depth < kDims / kDepth; ++depth) {
        uint32_t a[4];
        LoadQueries(task_, tile_, depth, a);
        AddScores<kDims>(a, depth, keys, scores);
      }
    }
  }

 private:
  static constexpr bool kHeld = kDims <= 128;

  const AttentionTask& task_;
  const QueryTile& tile_;
  uint32_t held_[kHeld ? kDims / kDepth : 1][4];
};

// One tile, at position `begin`, for a warp that sees some of it.
template <int kDims>
MARCORO_DEVICE void AddTile(const AttentionTask& task, const QueryTile& tile,
                            const Queries<kDims>& queries, int begin,
                            const SharedArray<uint16_t>& keys, const SharedArray<uint16_t>& values,
                            RunningSplit<ValueDims(kDims) / kDepth>& split) {
  constexpr int kValueDims = ValueDims(kDims);
  constexpr int kPairs = kValueDims / kDepth;
  float scores[kScoreTiles][4];
  queries.Score(keys, scores);
  const bool some_hidden = begin < tile.all.low || begin + kTilePositions - 1 > tile.all.high;
  if (some_hidden) HideScores(tile, begin, scores);
  float max[2];
  LargestScores(scores, task.scale, max);
  split.Rebase(max);
  const float base[2] = {Base(split.max[0]), Base(split.max[1])};
  uint32_t probabilities[kTileDepths][4];
  MARCORO_UNROLL_LOOP
  for (int depth = 0; depth < kTileDepths; ++depth) {
    Probabilities(scores, depth, task.scale, base, probabilities[depth]);
  }
  if (some_hidden && !AllFinite<kValueDims>(values)) {
    MARCORO_UNROLL_LOOP
    for (int depth = 0; depth < kTileDepths; ++depth) {
      AddValues<kValueDims, kPairs, true>(task, tile, probabilities[depth], depth, begin, values, 0,
                                          1, split);
    }
    return;
  }
  MARCORO_UNROLL_LOOP
  for (int depth = 0; depth < kTileDepths; ++depth) {
    AddValues<kValueDims, kPairs, false>(task, tile, probabilities[depth], depth, begin, values, 0,
                                         1, split);
  }
}

template <int kDims>
MARCORO_DEVICE void CopyTiles(const AttentionTask& task, const QuerySequence& sequence, int kv_head,
                              int first_dim, int t, Visible loaded) {
  constexpr int kValueDims = ValueDims(kDims);
  const int begin = t * kTilePositions;
  const int thread = ThreadIndex();
  const SharedArray<uint16_t> to_keys = Tiles<kDims>::Keys(t);
  const SharedArray<uint16_t> to_values = Tiles<kDims>::Values(t);
  const TileSource keys = KeysOf(task, kv_head);
  const TileSource values = ValuesOf(task, kv_head, first_dim);
  const int32_t* blocks = sequence.blocks;
  if (!TakesPairs(kDims) || task.head_dim % kChunk == 0) {
    CopyTile<kDims, kThreads>(task, blocks, keys, begin, loaded, thread, to_keys);
    CopyTile<kValueDims, kThreads>(task, blocks, values, begin, loaded, thread, to_values);
  } else {
    CopyTilePairs<kDims, kThreads>(task, blocks, keys, begin, loaded, thread, to_keys);
    CopyTilePairs<kValueDims, kThreads>(task, blocks, values, begin, loaded, thread, to_values);
  }
}

// What a block does with query rows [first, first + 128) of a sequence.
template <int kDims>
MARCORO_DEVICE void Walk(const AttentionTask& task, const QuerySequence& sequence, int kv_head,
                         int first_dim, int first) {
  constexpr int kPairs = ValueDims(kDims) / kDepth;
  const int rows_left = sequence.query_rows - first;
  const int rows = rows_left < kBlockRows ? rows_left : kBlockRows;
  const Visible loaded = SeenByAny(task, sequence, first, first + rows - 1);
  const QueryTile tile = MakeQueryTile(task, sequence, kv_head, first + Warp() * kQueryTileRows);
  const Queries<kDims> queries(task, tile);
  RunningSplit<kPairs> split;
  RunningSplit<kPairs> total;
  split.Clear();
  total.Clear();

  const int last = loaded.high / kTilePositions;
  int t = loaded.low / kTilePositions;
  CopyTiles<kDims>(task, sequence, kv_head, first_dim, t, loaded);
  CommitCopies();
  for (; t <= last; ++t) {
    WaitCopies<0>();
    SyncBlock();  // the tile is there, and nobody reads the one before it any more
    if (t < last) CopyTiles<kDims>(task, sequence, kv_head, first_dim, t + 1, loaded);
    CommitCopies();
    const int begin = t * kTilePositions;
    if (Overlap({begin, begin + kTilePositions - 1}, tile.any)) {
      AddTile<kDims>(task, tile, queries, begin, Tiles<kDims>::Keys(t), Tiles<kDims>::Values(t),
                     split);
    }
    if (t == last || t % kSplitTiles == kSplitTiles - 1) {
      MergeInto(total, split);
      split.Clear();
    }
  }
  WaitCopies<0>();
  StoreRows<ValueDims(kDims)>(task, tile, first_dim, 0, 1, total);
}

template <int kDims>
MARCORO_KERNEL(kThreads, 1)
AttendWalksKernel(AttentionTask task) {
  LaunchDependents();
  WaitForKernelAhead();
  const Work work = FindWork(task.step.sequences, GridX() - 1 - BlockIndexX(), [&](int s) {
    const int rows = QueryRows(task, s);
    return rows <= task.split_rows ? 0 : (rows + kBlockRows - 1) / kBlockRows;
  });
  if (work.sequence < 0) return;
  Walk<kDims>(task, SequenceOf(task, work.sequence), BlockIndexY() % task.kv_heads,
              BlockIndexY() / task.kv_heads * ValueDims(kDims), work.piece * kBlockRows);
}

template <int kDims>
void LaunchWalks(Stream stream, const AttentionTask& task) {
  // Every sequence may end with a block that is not full.
  const int64_t rows = int64_t{task.step.rows} * task.group;
  const int64_t sequences = task.step.sequences;
  const int64_t most = rows / (task.split_rows + 1);
  const int64_t blocks = rows / kBlockRows + (sequences < most ? sequences : most);
  const int slices = (task.head_dim + ValueDims(kDims) - 1) / ValueDims(kDims);
  Launch(stream,
         {.grid_x = static_cast<int>(blocks),
          .grid_y = task.kv_heads * slices,
          .threads = kThreads,
          .shared_bytes = Tiles<kDims>::kBytes,
          .overlaps_kernel_ahead = true},
         AttendWalksKernel<kDims>, task);
}

}  // namespace

void AttendWalks(Stream stream, const AttentionTask& task) {
  switch (DimsToCompute(task.head_dim)) {
    case 32:
      return LaunchWalks<32>(stream, task);
    case 64:
      return LaunchWalks<64>(stream, task);
    case 96:
      return LaunchWalks<96>(stream, task);
    case 128:
      return LaunchWalks<128>(stream, task);
    default:
      return LaunchWalks<256>(stream, task);
  }
}

}  // namespace marcoro::cuda
