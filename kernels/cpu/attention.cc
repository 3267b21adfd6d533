// Attention over a paged KV cache, by online softmax.
//
// A token walks tiles of 64 positions, aligned to absolute positions, from the first one that its
// window touches to its own; for each of its heads it keeps the largest score so far, the sum of
// the probabilities relative to it, and the output not yet divided by that sum. What one token
// computes is a function of its own query and of the positions that it sees, in this order of
// operations and no other: tokens of a tile are interleaved only to find the keys and values in the
// cache. Where a pair of positions is half visible, the value of the other half is cleared, so that
// not even a NaN in it is noticed.
//
// In FP8 products are those of the codes: a key's scale enters with its score, a value's with its
// probability, after the probability has been added to the sum and before it is rounded to BF16.

#include "kernels/cpu/attention_products.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

constexpr float kLowest = -__builtin_inff();

// Of one head of one token.
struct alignas(64) Running {
  float sum[kLanes];  // lane i adds the positions that are i modulo kLanes
  float largest;
};

// Turns the scores of `rows` heads in vectors [begin, end) into probabilities relative to the
// largest score so far, 0 for what is not visible, and brings the running sums up to date.
template <KvFormat format, int rows>
MARCORO_INLINE void Softmax(float scale, const KvTile& kv, int32_t head_dim, Visible visible,
                            int32_t begin, int32_t end, Running* running, TileScores& tile) {
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
    Float scales;
    if constexpr (format == KvFormat::kFp8) {
      // 0 · NaN is NaN: what is not visible has no scale.
      scales = KeepBetween(Mul(Load(ScalesOf(kv, ValueScales(head_dim), v)), Set(1 / kDecodedUnit)),
                           v * kLanes, visible.low, visible.high, 0);
    }
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) {
      BFloat16* rounded = tile.probabilities[r] + v * kLanes;
      const Float probability = Exp(Sub(Load(tile.scores[r] + v * kLanes), largest[r]));
      if constexpr (format == KvFormat::kFp8) {
        StoreBf16(Mul(probability, scales), rounded);
        sums[r] = Add(sums[r], probability);
      } else {
        StoreBf16(probability, rounded);
        sums[r] = Add(sums[r], LoadBf16(rounded));  // what is multiplied with the values
      }
    }
  }
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) Store(sums[r], running[r].sum);
}

// One KV tile for `rows` heads of one token.
template <KvFormat format, int rows>
void AddKvTile(const BFloat16* q, int32_t head_dim, float scale, const KvTile& kv, Visible visible,
               Running* running, float* out) {
  TileScores tile;
  const int32_t begin = visible.low / kBlockTokens * kVectorsPerBlock;
  const int32_t end = (visible.high / kBlockTokens + 1) * kVectorsPerBlock;
  Score<format, rows>(q, head_dim, kv, begin, end, tile);
  Softmax<format, rows>(scale, kv, head_dim, visible, begin, end, running, tile);
  Weigh<format, rows>(kv, head_dim, visible, tile, out);
}

template <KvFormat format>
void AddKvTile(const BFloat16* q, int32_t heads, int32_t head_dim, float scale, const KvTile& kv,
               Visible visible, Running* running, float* out) {
  const int64_t padded = PaddedHeadDim(head_dim);
  while (heads > 0) {
    const int32_t rows = Smaller(heads, kRows);
    switch (rows) {
      case 4:
        AddKvTile<format, 4>(q, head_dim, scale, kv, visible, running, out);
        break;
      case 3:
        AddKvTile<format, 3>(q, head_dim, scale, kv, visible, running, out);
        break;
      case 2:
        AddKvTile<format, 2>(q, head_dim, scale, kv, visible, running, out);
        break;
      default:
        AddKvTile<format, 1>(q, head_dim, scale, kv, visible, running, out);
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

template <KvFormat format>
void StoreHead(const float* sums, const Running& running, int32_t head_dim, BFloat16* out) {
  const Float total = Set(Sum(Load(running.sum)));
  for (int32_t i = 0; i < head_dim; i += kLanes) {
    Float v = Div(Load(sums + i), total);
    // Never -0, which what is not visible could make of it.
    if constexpr (format == KvFormat::kFp8) v = Add(v, Set(0));
    StoreFirstBf16(v, Smaller(kLanes, head_dim - i), out + i);
  }
}

int32_t FirstPosition(int32_t position, int32_t window) {
  return window > 0 ? Larger(0, position - window + 1) : 0;
}

template <KvFormat format>
void Attend(const AttentionTile& tile) {
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
      AddKvTile<format>(tile.q + t * tile.q_stride, tile.heads, tile.head_dim, tile.scale, kv,
                        visible, running + row, out + row * padded);
    }
  }

  for (int32_t r = 0; r < rows; ++r) {
    BFloat16* to =
        tile.out + r / tile.heads * tile.out_stride + int64_t{r % tile.heads} * tile.head_dim;
    StoreHead<format>(out + r * padded, running[r], tile.head_dim, to);
  }
}

}  // namespace

void AttendTile(const AttentionTile& tile) {
  if (tile.format == KvFormat::kFp8) {
    Attend<KvFormat::kFp8>(tile);
  } else {
    Attend<KvFormat::kActivation>(tile);
  }
}

}  // namespace marcoro::cpu::MARCORO_ISA
