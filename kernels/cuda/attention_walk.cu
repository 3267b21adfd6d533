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
//
// In FP8 decoding wants registers: queries of more than 64 dimensions are read again for each tile
// (4 KB for a warp, beside 16 KB of codes from shared memory), and above 128 dimensions a block
// computes a quarter of the output's.
#include "kernels/cuda/attention_bf16.h"
#include "kernels/cuda/attention_copy.h"
#include "kernels/cuda/attention_fp8.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device/dependent_launch.h"

namespace marcoro::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpThreads;
constexpr int kBlockRows = kWarps * kQueryTileRows;

// The dimensions that a block computes of the output.
template <typename Element>
constexpr int ValueDims(int dims) {
  return dims <= 128 ? dims : kIsCode<Element> ? dims / 4 : dims / 2;
}

// Whether heads of any even number of dimensions are taken, not multiples of 16 bytes only. For 128
// there is no register to spare.
constexpr bool TakesPairs(int dims) { return dims != 128; }
template <typename Element>
constexpr int DimsToCompute(int head_dim) {
  const int padded = PaddedHeadDim(head_dim);
  return head_dim % kChunkElements<Element> != 0 && !TakesPairs(padded) ? kMostHeadDim : padded;
}

// Shared memory: two tiles of keys, then two of values, then in FP8 the scales of both.
template <typename Element, int kDims>
struct Tiles {
  static constexpr int kKeys = TileElements<Element>(kDims);
  static constexpr int kValues = TileElements<Element>(ValueDims<Element>(kDims));
  static constexpr int kSize = static_cast<int>(sizeof(Element));
  static constexpr int kScales = 2 * (kKeys + kValues) * kSize;
  static constexpr int kScaleBytes = kTilePositions * 4;
  static constexpr int kBytes = kScales + (kIsCode<Element> ? 4 * kScaleBytes : 0);

  MARCORO_DEVICE static SharedArray<Element> Keys(int t) { return {t % 2 * kKeys * kSize, kKeys}; }
  MARCORO_DEVICE static SharedArray<Element> Values(int t) {
    return {(2 * kKeys + t % 2 * kValues) * kSize, kValues};
  }
  MARCORO_DEVICE static SharedArray<float> KeyScales(int t) {
    return {kScales + t % 2 * kScaleBytes, kTilePositions};
  }
  MARCORO_DEVICE static SharedArray<float> ValueScales(int t) {
    return {kScales + (2 + t % 2) * kScaleBytes, kTilePositions};
  }
};

// A warp's queries: in registers where there is room.
template <typename Element, int kDims>
class Queries {
 public:
  MARCORO_DEVICE Queries(const AttentionTask& task, const QueryTile& tile)
      : task_(task), tile_(tile) {
    if constexpr (kHeld) {
      MARCORO_UNROLL_LOOP
      for (int depth = 0; depth < kDims / kDepth; ++depth) {
        Load(depth, held_[depth]);
      }
    }
  }

  MARCORO_DEVICE void Score(const SharedArray<Element>& keys,
                            float (&scores)[kScoreTiles][4]) const {
    ClearScores(scores);
    if constexpr (kHeld) {
      MARCORO_UNROLL_LOOP
      for (int depth = 0; depth < kDims / kDepth; ++depth) {
        AddScores<kDims>(held_[depth], depth, keys, scores);
      }
    } else if constexpr (kIsCode<Element>) {
      MARCORO_KEEP_LOOP
      for (int depth = 0; depth < kDims / kDepth; ++depth) AddDepth(depth, keys, scores);
    } else {
      for (int depth = 0; depth < kDims / kDepth; ++depth) AddDepth(depth, keys, scores);
    }
  }

 private:
  MARCORO_DEVICE void Load(int depth, uint32_t (&a)[4]) const {
    if constexpr (kIsCode<Element>) {
      LoadQueriesForCodes(task_, tile_, depth, a);
    } else {
      LoadQueries(task_, tile_, depth, a);
    }
  }

  MARCORO_DEVICE void AddDepth(int depth, const SharedArray<Element>& keys,
                               float (&scores)[kScoreTiles][4]) const {
    uint32_t a[4];
    Load(depth, a);
    AddScores<kDims>(a, depth, keys, scores);
  }

  static constexpr bool kHeld = kDims <= (kIsCode<Element> ? 64 : 128);

  const AttentionTask& task_;
  const QueryTile& tile_;
  uint32_t held_[kHeld ? kDims / kDepth : 1][4];
};

// One tile, at position `begin`, for a warp that sees some of it: its scores, with what the lane's
// rows do not see hidden, and the base of their probabilities.
template <typename Element, int kDims>
MARCORO_DEVICE void ScoreTile(const AttentionTask& task, const QueryTile& tile,
                              const Queries<Element, kDims>& queries, int t, bool some_hidden,
                              float (&scores)[kScoreTiles][4],
                              RunningSplit<ValueDims<Element>(kDims) / kDepth>& split) {
  queries.Score(Tiles<Element, kDims>::Keys(t), scores);
  if constexpr (kIsCode<Element>) ScaleScores(Tiles<Element, kDims>::KeyScales(t), scores);
  if (some_hidden) HideScores(tile, t * kTilePositions, scores);
  float max[2];
  LargestScores(scores, task.scale, max);
  split.Rebase(max);
}

// The same tile's values.
template <int kDims>
MARCORO_DEVICE void WeighTile(const AttentionTask& task, const QueryTile& tile, int t,
                              bool some_hidden, const float (&scores)[kScoreTiles][4],
                              const float (&base)[2],
                              RunningSplit<ValueDims<uint16_t>(kDims) / kDepth>& split) {
  constexpr int kValueDims = ValueDims<uint16_t>(kDims);
  constexpr int kPairs = kValueDims / kDepth;
  const int begin = t * kTilePositions;
  const SharedArray<uint16_t> values = Tiles<uint16_t, kDims>::Values(t);
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

// The same tile's values in FP8.
template <int kDims>
MARCORO_DEVICE void WeighCodes(const AttentionTask& task, int t,
                               const float (&scores)[kScoreTiles][4], const float (&base)[2],
                               RunningSplit<ValueDims<uint8_t>(kDims) / kDepth>& split) {
  using Memory = Tiles<uint8_t, kDims>;
  float sums[4] = {};
  uint32_t probabilities[kTileDepths][4];
  MARCORO_UNROLL_LOOP
  for (int depth = 0; depth < kTileDepths; ++depth) {
    ScaledProbabilities(scores, depth, task.scale, base, Memory::ValueScales(t),
                        probabilities[depth], sums);
  }
  split.AddToSums(sums[0], sums[2]);
  MARCORO_UNROLL_LOOP
  for (int depth = 0; depth < kTileDepths; ++depth) {
    AddValues<ValueDims<uint8_t>(kDims)>(probabilities[depth], depth, Memory::Values(t), 0, 1,
                                         split);
  }
}

template <typename Element, int kDims>
MARCORO_DEVICE void AddTile(const AttentionTask& task, const QueryTile& tile,
                            const Queries<Element, kDims>& queries, int t,
                            RunningSplit<ValueDims<Element>(kDims) / kDepth>& split) {
  const int begin = t * kTilePositions;
  const bool some_hidden = begin < tile.all.low || begin + kTilePositions - 1 > tile.all.high;
  float scores[kScoreTiles][4];
  ScoreTile(task, tile, queries, t, some_hidden, scores, split);
  const float base[2] = {Base(split.max[0]), Base(split.max[1])};
  if constexpr (kIsCode<Element>) {
    WeighCodes<kDims>(task, t, scores, base, split);
  } else {
    WeighTile<kDims>(task, tile, t, some_hidden, scores, base, split);
  }
}

template <typename Element, int kDims>
MARCORO_DEVICE void CopyTiles(const AttentionTask& task, const QuerySequence& sequence, int kv_head,
                              int first_dim, int t, Visible loaded) {
  constexpr int kValueDims = ValueDims<Element>(kDims);
  const int begin = t * kTilePositions;
  const int thread = ThreadIndex();
  using Memory = Tiles<Element, kDims>;
  const SharedArray<Element> to_keys = Memory::Keys(t);
  const SharedArray<Element> to_values = Memory::Values(t);
  const TileSource keys = KeysOf<Element>(task, kv_head);
  const TileSource values = ValuesOf<Element>(task, kv_head, first_dim);
  const int32_t* blocks = sequence.blocks;
  if constexpr (kIsCode<Element>) {
    CopyScales(task, blocks, KeyScalesOf(task, kv_head), begin, loaded, thread,
               Memory::KeyScales(t));
    CopyScales(task, blocks, ValueScalesOf(task, kv_head), begin, loaded, thread - kScaleThreads,
               Memory::ValueScales(t));
  }
  if (!TakesPairs(kDims) || task.head_dim % kChunkElements<Element> == 0) {
    CopyTile<kDims, kThreads>(task, blocks, keys, begin, loaded, thread, to_keys);
    CopyTile<kValueDims, kThreads>(task, blocks, values, begin, loaded, thread, to_values);
  } else {
    CopyTilePairs<kDims, kThreads>(task, blocks, keys, begin, loaded, thread, to_keys);
    CopyTilePairs<kValueDims, kThreads>(task, blocks, values, begin, loaded, thread, to_values);
  }
}

// What a block does with query rows [first, first + 128) of a sequence.
template <typename Element, int kDims>
MARCORO_DEVICE void Walk(const AttentionTask& task, const QuerySequence& sequence, int kv_head,
                         int first_dim, int first) {
  constexpr int kPairs = ValueDims<Element>(kDims) / kDepth;
  const int rows_left = sequence.query_rows - first;
  const int rows = rows_left < kBlockRows ? rows_left : kBlockRows;
  const Visible loaded = SeenByAny(task, sequence, first, first + rows - 1);
  const QueryTile tile = MakeQueryTile(task, sequence, kv_head, first + Warp() * kQueryTileRows);
  const Queries<Element, kDims> queries(task, tile);
  RunningSplit<kPairs> split;
  RunningSplit<kPairs> total;
  split.Clear();
  total.Clear();

  const int last = loaded.high / kTilePositions;
  int t = loaded.low / kTilePositions;
  CopyTiles<Element, kDims>(task, sequence, kv_head, first_dim, t, loaded);
  CommitCopies();
  for (; t <= last; ++t) {
    WaitCopies<0>();
    SyncBlock();  // the tile is there, and nobody reads the one before it any more
    if (t < last) CopyTiles<Element, kDims>(task, sequence, kv_head, first_dim, t + 1, loaded);
    CommitCopies();
    const int begin = t * kTilePositions;
    if (Overlap({begin, begin + kTilePositions - 1}, tile.any)) {
      AddTile(task, tile, queries, t, split);
    }
    if (t == last || t % kSplitTiles == kSplitTiles - 1) {
      MergeInto(total, split);
      split.Clear();
    }
  }
  WaitCopies<0>();
  StoreRows<Element, ValueDims<Element>(kDims)>(task, tile, first_dim, 0, 1, total);
}

template <typename Element, int kDims>
MARCORO_KERNEL(kThreads, 1)
AttendWalksKernel(AttentionTask task) {
  LaunchDependents();
  WaitForKernelAhead();
  if (task.split_rows == 0 && BlockIndexY() == 0) {
    ClearPadding(task, FindPadding(task, BlockIndexX()));
  }
  const Work work = FindWork(task.step.sequences, GridX() - 1 - BlockIndexX(), [&](int s) {
    const int rows = QueryRows(task, s);
    return rows <= task.split_rows ? 0 : (rows + kBlockRows - 1) / kBlockRows;
  });
  if (work.sequence < 0) return;
  Walk<Element, kDims>(task, SequenceOf(task, work.sequence), BlockIndexY() % task.kv_heads,
                       BlockIndexY() / task.kv_heads * ValueDims<Element>(kDims),
                       work.piece * kBlockRows);
}

template <typename Element, int kDims>
void LaunchWalks(Stream stream, const AttentionTask& task) {
  // Every sequence may end with a block that is not full.
  const int64_t rows = int64_t{task.step.rows} * task.group;
  const int64_t sequences = task.step.sequences;
  const int64_t most = rows / (task.split_rows + 1);
  const int64_t blocks = rows / kBlockRows + (sequences < most ? sequences : most);
  const int slices = (task.head_dim + ValueDims<Element>(kDims) - 1) / ValueDims<Element>(kDims);
  Launch(stream,
         {.grid_x = static_cast<int>(blocks > 0 ? blocks : 1),
          .grid_y = task.kv_heads * slices,
          .threads = kThreads,
          .shared_bytes = Tiles<Element, kDims>::kBytes,
          .overlaps_kernel_ahead = true},
         AttendWalksKernel<Element, kDims>, task);
}

template <typename Element>
void LaunchWalks(Stream stream, const AttentionTask& task) {
  switch (DimsToCompute<Element>(task.head_dim)) {
    case 32:
      return LaunchWalks<Element, 32>(stream, task);
    case 64:
      return LaunchWalks<Element, 64>(stream, task);
    case 96:
      return LaunchWalks<Element, 96>(stream, task);
    case 128:
      return LaunchWalks<Element, 128>(stream, task);
    default:
      return LaunchWalks<Element, 256>(stream, task);
  }
}

}  // namespace

void AttendWalks(Stream stream, const AttentionTask& task) {
  if (task.format == KvFormat::kFp8) return LaunchWalks<uint8_t>(stream, task);
  LaunchWalks<uint16_t>(stream, task);
}

}  // namespace marcoro::cuda
