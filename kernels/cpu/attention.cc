// Attention over a paged KV cache, by online softmax.
//
// A token walks tiles of 64 positions, aligned to absolute positions, from the first one that its
// window touches to its own; for each of its heads it keeps the largest score so far, the sum of
// the probabilities relative to it, and the output not yet divided by that sum. What one token
// computes is a function of its own query and of the positions that it sees, in this order of
// operations and no other: tokens of a tile are interleaved only to find the keys and values in the
// cache. Where a pair of positions is half visible, the value of the other half is cleared, so that
// not even a NaN in it is noticed.

#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

constexpr int32_t kTileBlocks = 4;
constexpr int32_t kTileTokens = kTileBlocks * kBlockTokens;
constexpr int32_t kVectorsPerBlock = kBlockTokens / kLanes;
// Heads that are computed together, and vectors of scores or of output elements for each of them:
// as many accumulators as hide the latency of a multiply-add and still fit in the registers.
constexpr int32_t kRows = 4;
constexpr int32_t kVectors = kLanes == 16 ? 4 : 2;
constexpr float kLowest = -__builtin_inff();

// Of one head of one token.
struct alignas(64) Running {
  float sum[kLanes];  // lane i adds the positions that are i modulo kLanes
  float largest;
};

// The positions of one KV tile that a token sees, relative to the tile: [low, high], not empty.
struct Visible {
  int32_t low;
  int32_t high;
};

// The blocks of one KV tile, at the part of the KV head that is read (null where no token sees
// them), and those of the next. Each line that is read asks for its counterpart in the next tile,
// so that memory and arithmetic overlap.
struct KvTile {
  const BFloat16* blocks[kTileBlocks];
  const BFloat16* next[kTileBlocks];
};

// Scores, then probabilities, of kRows heads.
struct TileScores {
  alignas(64) float scores[kRows][kTileTokens];
  alignas(64) BFloat16 probabilities[kRows][kTileTokens];
  alignas(64) float rescale[kLanes];  // by how much earlier sums count now
};

MARCORO_INLINE int32_t Larger(int32_t a, int32_t b) { return a > b ? a : b; }
MARCORO_INLINE int32_t Smaller(int32_t a, int32_t b) { return a < b ? a : b; }

// Scores of `rows` heads against the keys in `vectors` neighbouring vectors of positions.
template <int rows, int vectors>
MARCORO_INLINE void ScoreVectors(const BFloat16* q, int32_t head_dim, const KvTile& kv,
                                 int32_t first_vector, TileScores& tile) {
  Float sums[rows][vectors];
  const BFloat16* keys[vectors];
  const BFloat16* next_keys[vectors];
  MARCORO_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const int32_t vector = first_vector + v;
    const int32_t offset = vector % kVectorsPerBlock * kLanes * 2;
    keys[v] = kv.blocks[vector / kVectorsPerBlock] + offset;
    next_keys[v] = kv.next[vector / kVectorsPerBlock] + offset;
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) sums[r][v] = Set(0);
  }
  for (int32_t i = 0; i < head_dim; i += 2) {
    Pairs key[vectors];
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      key[v] = LoadPairs(keys[v] + int64_t{i} * kBlockTokens);
      Prefetch(next_keys[v] + int64_t{i} * kBlockTokens);
    }
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Pairs query = BroadcastPair(q + int64_t{r} * head_dim + i);
      MARCORO_UNROLL
      for (int v = 0; v < vectors; ++v) sums[r][v] = DotPairs(sums[r][v], query, key[v]);
    }
  }
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) {
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      Store(sums[r][v], tile.scores[r] + (first_vector + v) * kLanes);
    }
  }
}

// Scores of `rows` heads against the keys in vectors [begin, end) of positions.
template <int rows>
void Score(const BFloat16* q, int32_t head_dim, const KvTile& kv, int32_t begin, int32_t end,
           TileScores& tile) {
  for (; end - begin >= kVectors; begin += kVectors) {
    ScoreVectors<rows, kVectors>(q, head_dim, kv, begin, tile);
  }
  if constexpr (kVectors > 2) {
    if (end - begin == 3) ScoreVectors<rows, 3>(q, head_dim, kv, begin, tile);
    if (end - begin == 2) ScoreVectors<rows, 2>(q, head_dim, kv, begin, tile);
    if (end - begin == 1) ScoreVectors<rows, 1>(q, head_dim, kv, begin, tile);
  }
}

// Turns the scores of `rows` heads in vectors [begin, end) into probabilities relative to the
// largest score so far, 0 for what is not visible, and brings the running sums up to date.
template <int rows>
MARCORO_INLINE void Softmax(float scale, Visible visible, int32_t begin, int32_t end,
                            Running* running, TileScores& tile) {
  Float largest[rows];
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) largest[r] = Set(running[r].largest);
  for (int32_t v = begin; v < end; ++v) {
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) {
      float* scores = tile.scores[r] + v * kLanes;
      const Float score = KeepBetween(Mul(Load(scores), Set(scale)), v * kLanes, visible.low,
                                      visible.high, kLowest);
      Store(score, scores);
      largest[r] = Max(score, largest[r]);
    }
  }
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) {
    const float before = running[r].largest;
    running[r].largest = Largest(largest[r]);
    largest[r] = Set(running[r].largest);
    tile.rescale[r] = before - running[r].largest;
  }
  Store(Exp(LoadFirst(tile.rescale, rows, 0)), tile.rescale);

  Float sums[rows];
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) sums[r] = Mul(Load(running[r].sum), Set(tile.rescale[r]));
  for (int32_t v = begin; v < end; ++v) {
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) {
      BFloat16* rounded = tile.probabilities[r] + v * kLanes;
      StoreBf16(Exp(Sub(Load(tile.scores[r] + v * kLanes), largest[r])), rounded);
      sums[r] = Add(sums[r], LoadBf16(rounded));  // what is multiplied with the values
    }
  }
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) Store(sums[r], running[r].sum);
}

// out[r] = out[r] · rescale[r] + Σ probability · value over the visible positions, for `rows` heads
// and `vectors` neighbouring vectors of elements, the first of which is `element`.
template <int rows, int vectors>
MARCORO_INLINE void WeighVectors(const KvTile& kv, int32_t head_dim, int32_t element,
                                 Visible visible, const TileScores& tile, float* out) {
  const int32_t padded = PaddedHeadDim(head_dim);
  Float sums[rows][vectors];
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) {
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] =
          Mul(Load(out + int64_t{r} * padded + element + v * kLanes), Set(tile.rescale[r]));
    }
  }
  const int32_t first = visible.low / 2;
  const int32_t last = visible.high / 2;
  for (int32_t pair = first; pair <= last; ++pair) {
    uint32_t keep = 0xffffffffu;
    if (pair == first && visible.low % 2 == 1) keep &= 0xffff0000u;
    if (pair == last && visible.high % 2 == 0) keep &= 0x0000ffffu;
    constexpr int32_t kBlockPairs = kBlockTokens / 2;
    const int64_t offset =
        KeyElements(head_dim) + (int64_t{pair % kBlockPairs} * padded + element) * 2;
    const BFloat16* row = kv.blocks[pair / kBlockPairs] + offset;
    const BFloat16* next_row = kv.next[pair / kBlockPairs] + offset;
    Pairs value[vectors];
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      value[v] = LoadPairs(row + v * kLanes * 2, keep);
      Prefetch(next_row + v * kLanes * 2);
    }
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) {
      const Pairs probability = BroadcastPair(tile.probabilities[r] + pair * 2);
      MARCORO_UNROLL
      for (int v = 0; v < vectors; ++v) sums[r][v] = DotPairs(sums[r][v], probability, value[v]);
    }
  }
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) {
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      Store(sums[r][v], out + int64_t{r} * padded + element + v * kLanes);
    }
  }
}

template <int rows>
void Weigh(const KvTile& kv, int32_t head_dim, Visible visible, const TileScores& tile,
           float* out) {
  const int32_t padded = PaddedHeadDim(head_dim);
  int32_t element = 0;
  for (; element + kVectors * kLanes <= padded; element += kVectors * kLanes) {
    WeighVectors<rows, kVectors>(kv, head_dim, element, visible, tile, out);
  }
  for (; element < padded; element += kLanes) {
    WeighVectors<rows, 1>(kv, head_dim, element, visible, tile, out);
  }
}

// One KV tile for `rows` heads of one token.
template <int rows>
void AddKvTile(const BFloat16* q, int32_t head_dim, float scale, const KvTile& kv, Visible visible,
               Running* running, float* out) {
  TileScores tile;
  const int32_t begin = visible.low / kBlockTokens * kVectorsPerBlock;
  const int32_t end = (visible.high / kBlockTokens + 1) * kVectorsPerBlock;
  Score<rows>(q, head_dim, kv, begin, end, tile);
  Softmax<rows>(scale, visible, begin, end, running, tile);
  Weigh<rows>(kv, head_dim, visible, tile, out);
}

void AddKvTile(const BFloat16* q, int32_t heads, int32_t head_dim, float scale, const KvTile& kv,
               Visible visible, Running* running, float* out) {
  const int64_t padded = PaddedHeadDim(head_dim);
  while (heads > 0) {
    const int32_t rows = Smaller(heads, kRows);
    switch (rows) {
      case 4:
        AddKvTile<4>(q, head_dim, scale, kv, visible, running, out);
        break;
      case 3:
        AddKvTile<3>(q, head_dim, scale, kv, visible, running, out);
        break;
      case 2:
        AddKvTile<2>(q, head_dim, scale, kv, visible, running, out);
        break;
      default:
        AddKvTile<1>(q, head_dim, scale, kv, visible, running, out);
        break;
    }
    heads -= rows;
    q += int64_t{rows} * head_dim;
    running += rows;
    out += rows * padded;
  }
}

// The tile at position `begin`, as far as its blocks hold positions in [first, last].
KvTile FindKvTile(const AttentionTile& tile, int32_t begin, int32_t first, int32_t last) {
  KvTile kv = {};
  for (int32_t b = 0; b < kTileBlocks; ++b) {
    const int32_t start = begin + b * kBlockTokens;
    if (start > last || start + kBlockTokens <= first) continue;
    const int32_t entry = start / kBlockTokens;
    const int32_t next = start + kTileTokens <= last ? entry + kTileBlocks : entry;
    kv.blocks[b] = tile.head + tile.blocks[entry] * tile.block_stride;
    kv.next[b] = tile.head + tile.blocks[next] * tile.block_stride;
  }
  return kv;
}

void StoreHead(const float* sums, const Running& running, int32_t head_dim, BFloat16* out) {
  const Float total = Set(Sum(Load(running.sum)));
  for (int32_t i = 0; i < head_dim; i += kLanes) {
    const Float v = Div(Load(sums + i), total);
    StoreFirstBf16(v, Smaller(kLanes, head_dim - i), out + i);
  }
}

int32_t FirstPosition(int32_t position, int32_t window) {
  return window > 0 ? Larger(0, position - window + 1) : 0;
}

}  // namespace

void AttendTile(const AttentionTile& tile) {
  alignas(64) float out[kAttentionTileElements];
  Running running[kAttentionTileTokens * kAttentionTileHeads];
  const int64_t padded = PaddedHeadDim(tile.head_dim);
  const int32_t rows = tile.tokens * tile.heads;
  for (int64_t i = 0; i < rows * padded; i += kLanes) Store(Set(0), out + i);
  for (int32_t r = 0; r < rows; ++r) {
    Store(Set(0), running[r].sum);
    running[r].largest = kLowest;
  }

  const int32_t last = tile.position + tile.tokens - 1;
  const int32_t first = FirstPosition(tile.position, tile.window);
  for (int32_t begin = first / kTileTokens * kTileTokens; begin <= last; begin += kTileTokens) {
    const KvTile kv = FindKvTile(tile, begin, first, last);
    for (int32_t t = 0; t < tile.tokens; ++t) {
      const int32_t position = tile.position + t;
      const Visible visible = {Larger(0, FirstPosition(position, tile.window) - begin),
                               Smaller(kTileTokens - 1, position - begin)};
      if (visible.low > visible.high) continue;
      const int32_t row = t * tile.heads;
      AddKvTile(tile.q + t * tile.q_stride, tile.heads, tile.head_dim, tile.scale, kv, visible,
                running + row, out + row * padded);
    }
  }

  for (int32_t r = 0; r < rows; ++r) {
    BFloat16* to =
        tile.out + r / tile.heads * tile.out_stride + int64_t{r % tile.heads} * tile.head_dim;
    StoreHead(out + r * padded, running[r], tile.head_dim, to);
  }
}

}  // namespace marcoro::cpu::MARCORO_ISA
