// The arithmetic of attention: what one warp does with 16 query rows and a tile of 64 positions.
//
// For one query row, in this order and no other: splits of 256 positions in ascending order, inside
// a split tiles of 64 by online softmax. Scores are matrix products over the head's dimensions, 16
// at a time; the largest score of the tile and the ones before it in the split is the base of the
// tile's probabilities 2^(score - base), which are rounded to BF16 and, 16 positions at a time,
// multiplied with the values and with ones (that is their sum). Splits are merged one after the
// other. A position that a row does not see has a probability of exactly 0, so a tile or a split of
// which it sees nothing changes nothing, and may be left out. -0 and 0 may differ by that, so
// outputs are never -0.
//
// Rows of a matrix product do not meet, with one exception: 0 · NaN. What no row of a block sees is
// not read but zero (CopyTile). Where rows of a warp see different positions and one of the values
// is not finite, the values are multiplied token by token, each time without what that token does
// not see (AddValues, kOneByOne).
//
// Rows of shared memory are padded by 16 bytes: an odd number of 16-byte units, so the eight rows
// of a matrix load lie in different banks.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/async_copy.h"
#include "kernels/cuda/device/matrix.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/kv_layout.h"

namespace marcoro::cuda {

inline constexpr int kDepth = 16;      // of a matrix product
inline constexpr int kChunk = 8;       // elements of 16 bytes
inline constexpr int kScoreTiles = 8;  // 64 positions, 8 to a product
inline constexpr int kTileDepths = 4;  // 64 positions, 16 to a product

constexpr int RowElements(int dims) { return dims + kChunk; }
constexpr int TileElements(int dims) { return kTilePositions * RowElements(dims); }
constexpr int TileBytes(int dims) { return TileElements(dims) * 2; }

MARCORO_DEVICE float Lowest() { return BitsToFloat(0xff800000u); }
// What scores are relative to: any number will do where there are none yet.
MARCORO_DEVICE float Base(float max) { return max == Lowest() ? 0.0f : max; }

// Sixteen query rows of a sequence, of which a lane has two: g and g + 8 of the fragments.
struct QueryTile {
  int first_position;  // of its first token
  int tokens;
  Visible any;      // what any of its rows sees
  Visible all;      // what all of them see; may be empty
  Visible mine[2];  // what the lane's rows see; nothing if they do not exist
  int row[2];       // of the step
  int head[2];
};

MARCORO_DEVICE QueryTile MakeQueryTile(const AttentionTask& task, const QuerySequence& sequence,
                                       int kv_head, int first) {
  const int end =
      first + kQueryTileRows < sequence.query_rows ? first + kQueryTileRows : sequence.query_rows;
  QueryTile tile = {};
  tile.any = {0, -1};
  tile.first_position = sequence.first_position + first / task.group;
  tile.tokens = end > first ? (end - 1) / task.group - first / task.group + 1 : 0;
  if (tile.tokens > 0) {
    tile.any = SeenByAny(task, sequence, first, end - 1);
    tile.all = {VisibleFrom(tile.any.high, task.window).low, tile.first_position};
  }
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    const int row = first + Lane() / 4 + half * 8;
    tile.mine[half] = {0, -1};
    if (row >= end) continue;
    const int token = row / task.group;
    tile.mine[half] = VisibleFrom(sequence.first_position + token, task.window);
    tile.row[half] = sequence.first_row + token;
    tile.head[half] = kv_head * task.group + row % task.group;
  }
  return tile;
}

// Dimensions [16 depth, 16 depth + 16) of the queries, 0 for what does not exist.
MARCORO_DEVICE void LoadQueries(const AttentionTask& task, const QueryTile& tile, int depth,
                                uint32_t (&a)[4]) {
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 4; ++i) {
    const int half = i % 2;
    const int dim = depth * kDepth + i / 2 * 8 + Lane() % 4 * 2;
    const uint16_t* row = task.q + tile.row[half] * task.q_stride;
    const bool exists = tile.mine[half].high >= 0 && dim < task.head_dim;
    a[i] = exists ? *reinterpret_cast<const uint32_t*>(row + tile.head[half] * task.head_dim + dim)
                  : 0;
  }
}

// The keys or values of a tile, `dims` of a head's dimensions from an offset into the KV block on.
struct TileSource {
  int64_t offset;  // of the first position's first element in a KV block
  int dims;        // that exist; the rest of a row is cleared
};

MARCORO_DEVICE TileSource KeysOf(const AttentionTask& task, int kv_head) {
  return {kv_head * HeadElements(task.head_dim), task.head_dim};
}
MARCORO_DEVICE TileSource ValuesOf(const AttentionTask& task, int kv_head, int first_dim) {
  return {kv_head * HeadElements(task.head_dim) + KeyElements(task.head_dim) + first_dim,
          task.head_dim - first_dim};
}

inline constexpr int kTileBlocks = kTilePositions / kBlockTokens;

// Where the tile at position `begin` lies in its b-th KV block; any address where that block holds
// nothing of `loaded` (the block table may end before).
MARCORO_DEVICE const uint16_t* TileBlock(const AttentionTask& task, const int32_t* blocks,
                                         TileSource source, int begin, int b, Visible loaded) {
  const int first = begin + b * kBlockTokens;
  const bool read = Overlap({first, first + kBlockTokens - 1}, loaded);
  const int64_t block = read ? blocks[first / kBlockTokens] : 0;
  return task.cache + source.offset + block * BlockElements(task.kv_heads, task.head_dim);
}

// Threads 0 … kThreads - 1 ask for the tile at position `begin`, which others may read after a wait
// and a barrier. What is not in `loaded` is not read but cleared. head_dim is a multiple of 8.
template <int kDims, int kThreads>
MARCORO_DEVICE void CopyTile(const AttentionTask& task, const int32_t* blocks, TileSource source,
                             int begin, Visible loaded, int thread,
                             const SharedArray<uint16_t>& tile) {
  constexpr int kRowChunks = kDims / kChunk;
  constexpr int kBlockChunks = kBlockTokens * kRowChunks;
  const uint16_t* from[kTileBlocks];
  MARCORO_UNROLL_LOOP
  for (int b = 0; b < kTileBlocks; ++b) {
    from[b] = TileBlock(task, blocks, source, begin, b, loaded);
  }
  MARCORO_UNROLL_LOOP
  for (int b = 0; b < kTileBlocks; ++b) {
    MARCORO_UNROLL_LOOP
    for (int c = 0; c < kBlockChunks; c += kThreads) {
      const int chunk = c + thread;
      if (kBlockChunks % kThreads != 0 && chunk >= kBlockChunks) break;
      const int row = chunk / kRowChunks;
      const int dim = chunk % kRowChunks * kChunk;
      const int position = begin + b * kBlockTokens + row;
      const bool valid = position >= loaded.low && position <= loaded.high && dim < source.dims;
      const uint16_t* global = from[b] + row * task.head_dim + dim;
      CopyAsync16(tile.Address((b * kBlockTokens + row) * RowElements(kDims) + dim),
                  valid ? global : task.cache, valid);
    }
  }
}

// The same for any even head_dim, two elements at a time; the thread waits for them.
template <int kDims, int kThreads>
MARCORO_DEVICE void CopyTilePairs(const AttentionTask& task, const int32_t* blocks,
                                  TileSource source, int begin, Visible loaded, int thread,
                                  const SharedArray<uint16_t>& tile) {
  MARCORO_KEEP_LOOP
  for (int b = 0; b < kTileBlocks; ++b) {
    const uint16_t* from = TileBlock(task, blocks, source, begin, b, loaded);
    MARCORO_KEEP_LOOP
    for (int pair = thread; pair < kBlockTokens * kDims / 2; pair += kThreads) {
      const int row = pair / (kDims / 2);
      const int dim = pair % (kDims / 2) * 2;
      const int position = begin + b * kBlockTokens + row;
      const bool valid = position >= loaded.low && position <= loaded.high && dim < source.dims;
      const uint16_t* global = from + row * task.head_dim + dim;
      tile.StoreAs<uint32_t>((b * kBlockTokens + row) * RowElements(kDims) + dim,
                             valid ? *reinterpret_cast<const uint32_t*>(global) : 0);
    }
  }
}

MARCORO_DEVICE void ClearScores(float (&scores)[kScoreTiles][4]) {
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kScoreTiles; ++n) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) scores[n][i] = 0;
  }
}

// scores += queries of 16 dimensions · the tile's keys.
template <int kDims>
MARCORO_DEVICE void AddScores(const uint32_t (&queries)[4], int depth,
                              const SharedArray<uint16_t>& keys, float (&scores)[kScoreTiles][4]) {
  const int matrix = Lane() / 8;
  const int row = matrix / 2 * 8 + Lane() % 8;
  const int column = depth * kDepth + matrix % 2 * 8;
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kScoreTiles; n += 2) {
    uint32_t b[4];
    LoadMatrices(b, keys.Address((n * 8 + row) * RowElements(kDims) + column));
    MultiplyMatrix(scores[n], queries, {b[0], b[1]});
    MultiplyMatrix(scores[n + 1], queries, {b[2], b[3]});
  }
}

// What the lane's rows do not see becomes lowest. The tile begins at position `begin`.
MARCORO_DEVICE void HideScores(const QueryTile& tile, int begin, float (&scores)[kScoreTiles][4]) {
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kScoreTiles; ++n) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      const int position = begin + n * 8 + Lane() % 4 * 2 + i % 2;
      const Visible mine = tile.mine[i / 2];
      if (position < mine.low || position > mine.high) scores[n][i] = Lowest();
    }
  }
}

// The largest scores of rows g and g + 8, scaled.
MARCORO_DEVICE void LargestScores(const float (&scores)[kScoreTiles][4], float scale,
                                  float (&max)[2]) {
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    float largest = Lowest();
    MARCORO_UNROLL_LOOP
    for (int n = 0; n < kScoreTiles; ++n) {
      largest = Max(largest, Max(scores[n][half * 2], scores[n][half * 2 + 1]));
    }
    largest = Max(largest, ShuffleXor(largest, 1));
    largest = Max(largest, ShuffleXor(largest, 2));
    max[half] = Multiply(largest, scale);
  }
}

// Scores of positions [16 depth, 16 depth + 16) as probabilities, in the form of a left factor.
MARCORO_DEVICE void Probabilities(const float (&scores)[kScoreTiles][4], int depth, float scale,
                                  const float (&base)[2], uint32_t (&a)[4]) {
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 4; ++i) {
    const float(&two)[4] = scores[depth * 2 + i / 2];
    const int half = i % 2;
    a[i] = PackBf16(Exp2(MultiplyAdd(two[half * 2], scale, -base[half])),
                    Exp2(MultiplyAdd(two[half * 2 + 1], scale, -base[half])));
  }
}

// The sums of a split so far: kPairs times 16 of the dimensions, for rows g and g + 8.
template <int kPairs>
struct RunningSplit {
  float max[2];
  float sum[4];  // of probabilities: c[0] is row g's, c[2] row g + 8's
  float out[kPairs * 2][4];

  MARCORO_DEVICE void Clear() {
    max[0] = max[1] = Lowest();
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      sum[i] = 0;
      MARCORO_UNROLL_LOOP
      for (int n = 0; n < kPairs * 2; ++n) out[n][i] = 0;
    }
  }

  // Makes what was summed relative to the larger of the old base and the tile's.
  MARCORO_DEVICE void Rebase(const float (&tile_max)[2]) {
    float factor[2];
    MARCORO_UNROLL_LOOP
    for (int half = 0; half < 2; ++half) {
      const float before = max[half];
      max[half] = Max(before, tile_max[half]);
      factor[half] = Exp2(Subtract(before, Base(max[half])));
    }
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      sum[i] = Multiply(sum[i], factor[i / 2]);
      MARCORO_UNROLL_LOOP
      for (int n = 0; n < kPairs * 2; ++n) out[n][i] = Multiply(out[n][i], factor[i / 2]);
    }
  }
};

MARCORO_DEVICE bool BothFinite(uint32_t pair) {
  return (pair & 0x7f80u) != 0x7f80u && (pair & 0x7f800000u) != 0x7f800000u;
}

// Whether the whole tile is. Called by a warp.
template <int kDims>
MARCORO_DEVICE bool AllFinite(const SharedArray<uint16_t>& tile) {
  constexpr int kRowChunks = kDims / kChunk;
  bool finite = true;
  for (int c = Lane(); c < kTilePositions * kRowChunks; c += kWarpThreads) {
    const auto words =
        tile.LoadAs<Words4>(c / kRowChunks * RowElements(kDims) + c % kRowChunks * kChunk);
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) finite = finite && BothFinite(words.word[i]);
  }
  return Ballot(!finite) == 0;
}

// Which of the positions `first` and `first` + 1 are seen, as a mask of their values.
MARCORO_DEVICE uint32_t SeenHalves(Visible seen, int first) {
  const auto within = [&](int position) { return position >= seen.low && position <= seen.high; };
  return (within(first) ? 0x0000ffffu : 0u) | (within(first + 1) ? 0xffff0000u : 0u);
}

// Two right factors of 16 positions from `begin` on, added to two tiles of `out` once for each
// token of the query tile, without what that token does not see.
MARCORO_DEVICE void AddValuesOneByOne(const AttentionTask& task, const QueryTile& tile,
                                      const uint32_t (&probabilities)[4], const uint32_t (&b)[4],
                                      int begin, float (&low)[4], float (&high)[4]) {
  const int first = begin + Lane() % 4 * 2;
  for (int token = 0; token < tile.tokens; ++token) {
    const int position = tile.first_position + token;
    const Visible seen = VisibleFrom(position, task.window);
    const uint32_t upper = SeenHalves(seen, first);
    const uint32_t lower = SeenHalves(seen, first + 8);
    float out[2][4];
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      out[0][i] = low[i];
      out[1][i] = high[i];
    }
    MultiplyMatrix(out[0], probabilities, {b[0] & upper, b[1] & lower});
    MultiplyMatrix(out[1], probabilities, {b[2] & upper, b[3] & lower});
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      if (tile.mine[i / 2].high != position) continue;
      low[i] = out[0][i];
      high[i] = out[1][i];
    }
  }
}

// running += probabilities of positions [16 depth, 16 depth + 16) · the tile's values, of which a
// warp takes the 16 dimensions from 16 first_pair on, and every pair_step-th 16 behind them.
template <int kDims, int kPairs, bool kOneByOne>
MARCORO_DEVICE void AddValues(const AttentionTask& task, const QueryTile& tile,
                              const uint32_t (&probabilities)[4], int depth, int begin,
                              const SharedArray<uint16_t>& values, int first_pair, int pair_step,
                              RunningSplit<kPairs>& running) {
  constexpr uint32_t kOnes = 0x3f803f80u;
  MultiplyMatrix(running.sum, probabilities, {kOnes, kOnes});
  const int matrix = Lane() / 8;
  const int row = depth * kDepth + matrix % 2 * 8 + Lane() % 8;
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kPairs; ++n) {
    const int pair = first_pair + n * pair_step;
    if (pair >= kDims / kDepth) break;
    uint32_t b[4];
    LoadMatricesTransposed(
        b, values.Address(row * RowElements(kDims) + pair * kDepth + matrix / 2 * 8));
    if constexpr (kOneByOne) {
      AddValuesOneByOne(task, tile, probabilities, b, begin + depth * kDepth, running.out[n * 2],
                        running.out[n * 2 + 1]);
    } else {
      MultiplyMatrix(running.out[n * 2], probabilities, {b[0], b[1]});
      MultiplyMatrix(running.out[n * 2 + 1], probabilities, {b[2], b[3]});
    }
  }
}

// How sums relative to two bases are put together.
struct MergeFactors {
  float max;
  float first;
  float second;
};

MARCORO_DEVICE MergeFactors FactorsOf(float first_max, float second_max) {
  const float max = Max(first_max, second_max);
  return {max, Exp2(Subtract(first_max, Base(max))), Exp2(Subtract(second_max, Base(max)))};
}
MARCORO_DEVICE float Merge(const MergeFactors& factors, float first, float second) {
  return MultiplyAdd(second, factors.second, Multiply(first, factors.first));
}

// Puts a split behind those that were merged before; none yet: a cleared one.
template <int kPairs>
MARCORO_DEVICE void MergeInto(RunningSplit<kPairs>& total, const RunningSplit<kPairs>& split) {
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    const MergeFactors factors = FactorsOf(total.max[half], split.max[half]);
    total.max[half] = factors.max;
    total.sum[half * 2] = Merge(factors, total.sum[half * 2], split.sum[half * 2]);
    MARCORO_UNROLL_LOOP
    for (int n = 0; n < kPairs * 2; ++n) {
      MARCORO_UNROLL_LOOP
      for (int i = half * 2; i < half * 2 + 2; ++i) {
        total.out[n][i] = Merge(factors, total.out[n][i], split.out[n][i]);
      }
    }
  }
}

// An element of the output; never -0.
MARCORO_DEVICE float Normalized(float out, float inverse) {
  return Add(Multiply(out, inverse), 0.0f);
}

// Stores the lane's rows of dimensions [first_dim + 16 first_pair, …) as AddValues took them.
template <int kDims, int kPairs>
MARCORO_DEVICE void StoreRows(const AttentionTask& task, const QueryTile& tile, int first_dim,
                              int first_pair, int pair_step, const RunningSplit<kPairs>& total) {
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    if (tile.mine[half].high < 0) continue;
    uint16_t* out = task.out + tile.row[half] * task.out_stride + tile.head[half] * task.head_dim;
    const float inverse = Divide(1.0f, total.sum[half * 2]);
    MARCORO_UNROLL_LOOP
    for (int n = 0; n < kPairs * 2; ++n) {
      const int pair = first_pair + n / 2 * pair_step;
      const int dim = first_dim + pair * kDepth + n % 2 * 8 + Lane() % 4 * 2;
      if (pair >= kDims / kDepth || dim >= task.head_dim) continue;
      *reinterpret_cast<uint32_t*>(out + dim) =
          PackBf16(Normalized(total.out[n][half * 2], inverse),
                   Normalized(total.out[n][half * 2 + 1], inverse));
    }
  }
}

}  // namespace marcoro::cuda
