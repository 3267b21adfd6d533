// The matrix products of attention with one KV tile: queries with keys, probabilities with values.
// As simd.h, for the sources that are compiled once per instruction set.
#pragma once

#include "kernels/cpu/e4m3.h"
#include "kernels/cpu/kv_layout.h"
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

// The positions of one KV tile that a token sees, relative to the tile: [low, high], not empty.
struct Visible {
  int32_t low;
  int32_t high;
};

// The blocks of one KV tile, at the part of the KV head that is read (null where no token sees
// them), and those of the next. Each line that is read asks for its counterpart in the next tile,
// so that memory and arithmetic overlap.
struct KvTile {
  const char* blocks[kTileBlocks];
  const char* next[kTileBlocks];
};

// Scores, then probabilities, of kRows heads.
struct TileScores {
  alignas(64) float scores[kRows][kTileTokens];
  alignas(64) BFloat16 probabilities[kRows][kTileTokens];  // in FP8 times the values' scales
  alignas(64) float rescale[kLanes];                       // by how much earlier sums count now
};

MARCORO_INLINE int32_t Larger(int32_t a, int32_t b) { return a > b ? a : b; }
MARCORO_INLINE int32_t Smaller(int32_t a, int32_t b) { return a < b ? a : b; }

MARCORO_INLINE const BFloat16* Bf16At(const char* block) {
  return reinterpret_cast<const BFloat16*>(block);
}

// sums[r] += the pair of row r, `stride` elements behind that of row r - 1, · each of the values.
template <int rows, int vectors>
MARCORO_INLINE void AddPairs(const BFloat16* pairs, int64_t stride, const Pairs (&values)[vectors],
                             Float (&sums)[rows][vectors]) {
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) {
    const Pairs pair = BroadcastPair(pairs + r * stride);
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) sums[r][v] = DotPairs(sums[r][v], pair, values[v]);
  }
}

// The same of rows of four elements and codes; with two of them unless `four`.
template <int rows, int vectors, bool four = true>
MARCORO_INLINE void AddFours(const BFloat16* fours, int64_t stride, const Decoder& decode,
                             const char* const (&codes)[vectors], Float (&sums)[rows][vectors]) {
#if defined(__AVX512F__)
  MARCORO_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const PairsOfCodes values = decode(codes[v]);
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) {
      const BFloat16* row = fours + r * stride;
      sums[r][v] = DotPairs(sums[r][v], values.first, BroadcastPair(row));
      if constexpr (four) sums[r][v] = DotPairs(sums[r][v], values.second, BroadcastPair(row + 2));
    }
  }
#else  // to widen a pair takes longer than to multiply with it: once for all vectors
  Pairs values[vectors];
  MARCORO_UNROLL
  for (int v = 0; v < vectors; ++v) values[v] = decode.First(codes[v]);
  AddPairs<rows, vectors>(fours, stride, values, sums);
  if constexpr (four) {
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) values[v] = decode.Second(codes[v]);
    AddPairs<rows, vectors>(fours + 2, stride, values, sums);
  }
#endif
}

// Scores of `rows` heads against the keys in `vectors` neighbouring vectors of positions, in BF16.
template <int rows, int vectors>
MARCORO_INLINE void ScoreVectorsBf16(const BFloat16* q, int32_t head_dim, const KvTile& kv,
                                     int32_t first_vector, TileScores& tile) {
  Float sums[rows][vectors];
  const BFloat16* keys[vectors];
  const BFloat16* next_keys[vectors];
  MARCORO_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const int32_t vector = first_vector + v;
    const int32_t offset = vector % kVectorsPerBlock * kLanes * 2;
    keys[v] = Bf16At(kv.blocks[vector / kVectorsPerBlock]) + offset;
    next_keys[v] = Bf16At(kv.next[vector / kVectorsPerBlock]) + offset;
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
    AddPairs<rows, vectors>(q + i, head_dim, key, sums);
  }
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) {
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      Store(sums[r][v], tile.scores[r] + (first_vector + v) * kLanes);
    }
  }
}

// Where the scales of vector `vector` of positions are, `scales` being their offset in a block.
MARCORO_INLINE const float* ScalesOf(const KvTile& kv, int64_t scales, int32_t vector) {
  return reinterpret_cast<const float*>(kv.blocks[vector / kVectorsPerBlock] + scales) +
         vector % kVectorsPerBlock * kLanes;
}

// The same in FP8: products with codes, then times the keys' scales.
template <int rows, int vectors>
MARCORO_INLINE void ScoreVectorsFp8(const BFloat16* q, int32_t head_dim, const KvTile& kv,
                                    int32_t first_vector, TileScores& tile) {
  const Decoder decode;
  Float sums[rows][vectors];
  const char* keys[vectors];
  const char* next_keys[vectors];
  MARCORO_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const int32_t vector = first_vector + v;
    const int32_t offset = vector % kVectorsPerBlock * kLanes * 4;
    keys[v] = kv.blocks[vector / kVectorsPerBlock] + offset;
    next_keys[v] = kv.next[vector / kVectorsPerBlock] + offset;
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) sums[r][v] = Set(0);
  }
  int32_t i = 0;
  for (; i + 4 <= head_dim; i += 4) {
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) Prefetch(next_keys[v] + int64_t{i} * kBlockTokens);
    AddFours<rows, vectors>(q + i, head_dim, decode, keys, sums);
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) keys[v] += 4 * kBlockTokens;
  }
  if (i < head_dim) AddFours<rows, vectors, false>(q + i, head_dim, decode, keys, sums);
  MARCORO_UNROLL
  for (int v = 0; v < vectors; ++v) {
    const Float scales =
        Mul(Load(ScalesOf(kv, KeyScales(head_dim), first_vector + v)), Set(1 / kDecodedUnit));
    MARCORO_UNROLL
    for (int r = 0; r < rows; ++r) {
      Store(Mul(sums[r][v], scales), tile.scores[r] + (first_vector + v) * kLanes);
    }
  }
}

template <KvFormat format, int rows, int vectors>
MARCORO_INLINE void ScoreVectors(const BFloat16* q, int32_t head_dim, const KvTile& kv,
                                 int32_t first_vector, TileScores& tile) {
  if constexpr (format == KvFormat::kFp8) {
    ScoreVectorsFp8<rows, vectors>(q, head_dim, kv, first_vector, tile);
  } else {
    ScoreVectorsBf16<rows, vectors>(q, head_dim, kv, first_vector, tile);
  }
}

// Scores of `rows` heads against the keys in vectors [begin, end) of positions.
template <KvFormat format, int rows>
void Score(const BFloat16* q, int32_t head_dim, const KvTile& kv, int32_t begin, int32_t end,
           TileScores& tile) {
  for (; end - begin >= kVectors; begin += kVectors) {
    ScoreVectors<format, rows, kVectors>(q, head_dim, kv, begin, tile);
  }
  if constexpr (kVectors > 2) {
    if (end - begin == 3) ScoreVectors<format, rows, 3>(q, head_dim, kv, begin, tile);
    if (end - begin == 2) ScoreVectors<format, rows, 2>(q, head_dim, kv, begin, tile);
    if (end - begin == 1) ScoreVectors<format, rows, 1>(q, head_dim, kv, begin, tile);
  }
}

// The sums so far as they count now, and back; `stride` elements from one head's to the next.
template <int rows, int vectors>
MARCORO_INLINE void LoadRescaled(const float* out, int64_t stride, const TileScores& tile,
                                 Float (&sums)[rows][vectors]) {
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) {
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      sums[r][v] = Mul(Load(out + r * stride + v * kLanes), Set(tile.rescale[r]));
    }
  }
}
template <int rows, int vectors>
MARCORO_INLINE void StoreSums(const Float (&sums)[rows][vectors], int64_t stride, float* out) {
  MARCORO_UNROLL
  for (int r = 0; r < rows; ++r) {
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) Store(sums[r][v], out + r * stride + v * kLanes);
  }
}

// out[r] = out[r] · rescale[r] + Σ probability · value over the visible positions, for `rows` heads
// and `vectors` neighbouring vectors of elements, the first of which is `element`, in BF16.
template <int rows, int vectors>
MARCORO_INLINE void WeighVectorsBf16(const KvTile& kv, int32_t head_dim, int32_t element,
                                     Visible visible, const TileScores& tile, float* out) {
  const int32_t padded = PaddedHeadDim(head_dim);
  Float sums[rows][vectors];
  LoadRescaled<rows, vectors>(out + element, padded, tile, sums);
  const int32_t first = visible.low / 2;
  const int32_t last = visible.high / 2;
  for (int32_t pair = first; pair <= last; ++pair) {
    uint32_t keep = 0xffffffffu;
    if (pair == first && visible.low % 2 == 1) keep &= 0xffff0000u;
    if (pair == last && visible.high % 2 == 0) keep &= 0x0000ffffu;
    constexpr int32_t kBlockPairs = kBlockTokens / 2;
    const int64_t offset =
        KeyElements(head_dim) + (int64_t{pair % kBlockPairs} * padded + element) * 2;
    const BFloat16* row = Bf16At(kv.blocks[pair / kBlockPairs]) + offset;
    const BFloat16* next_row = Bf16At(kv.next[pair / kBlockPairs]) + offset;
    Pairs value[vectors];
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      value[v] = LoadPairs(row + v * kLanes * 2, keep);
      Prefetch(next_row + v * kLanes * 2);
    }
    AddPairs<rows, vectors>(&tile.probabilities[0][pair * 2], kTileTokens, value, sums);
  }
  StoreSums<rows, vectors>(sums, padded, out + element);
}

// The same in FP8. What is not visible has a probability of 0 and, since no code is NaN, may be
// multiplied.
template <int rows, int vectors>
MARCORO_INLINE void WeighVectorsFp8(const KvTile& kv, int32_t head_dim, int32_t element,
                                    Visible visible, const TileScores& tile, float* out) {
  const Decoder decode;
  const int32_t padded = PaddedHeadDim(head_dim);
  Float sums[rows][vectors];
  LoadRescaled<rows, vectors>(out + element, padded, tile, sums);
  for (int32_t quad = visible.low / 4; quad <= visible.high / 4; ++quad) {
    constexpr int32_t kBlockQuads = kBlockTokens / 4;
    const int64_t offset =
        ValueCodes(head_dim) + (int64_t{quad % kBlockQuads} * padded + element) * 4;
    const char* row = kv.blocks[quad / kBlockQuads] + offset;
    const char* next_row = kv.next[quad / kBlockQuads] + offset;
    const char* codes[vectors];
    MARCORO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      codes[v] = row + v * kLanes * 4;
      Prefetch(next_row + v * kLanes * 4);
    }
    AddFours<rows, vectors>(&tile.probabilities[0][quad * 4], kTileTokens, decode, codes, sums);
  }
  StoreSums<rows, vectors>(sums, padded, out + element);
}

template <KvFormat format, int rows, int vectors>
MARCORO_INLINE void WeighVectors(const KvTile& kv, int32_t head_dim, int32_t element,
                                 Visible visible, const TileScores& tile, float* out) {
  if constexpr (format == KvFormat::kFp8) {
    WeighVectorsFp8<rows, vectors>(kv, head_dim, element, visible, tile, out);
  } else {
    WeighVectorsBf16<rows, vectors>(kv, head_dim, element, visible, tile, out);
  }
}

template <KvFormat format, int rows>
void Weigh(const KvTile& kv, int32_t head_dim, Visible visible, const TileScores& tile,
           float* out) {
  const int32_t padded = PaddedHeadDim(head_dim);
  int32_t element = 0;
  for (; element + kVectors * kLanes <= padded; element += kVectors * kLanes) {
    WeighVectors<format, rows, kVectors>(kv, head_dim, element, visible, tile, out);
  }
  for (; element < padded; element += kLanes) {
    WeighVectors<format, rows, 1>(kv, head_dim, element, visible, tile, out);
  }
}

}  // namespace
}  // namespace marcoro::cpu::MARCORO_ISA
