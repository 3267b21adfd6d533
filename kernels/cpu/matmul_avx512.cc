// Matmul with AVX-512 VBMI and BF16. A step is 4 columns. A block of 16 rows takes 64 bytes a step
// in FP8: 16 bytes hold columns 0-1 of 4 rows, then columns 2-3 of the same rows, so that decoding
// a code to the low and the high byte of its BF16 value and interleaving those bytes gives two
// vectors of 16 rows times 2 columns, the operands of vdpbf16ps. In BF16 the two vectors are stored
// as they are. Packed activations are (step, token, 4 columns).
//
// An output element is one chain of vdpbf16ps over its segment's columns in order, times the row's
// scale, then the tree.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/matmul_driver.h"

namespace marcoro::cpu::avx512 {
namespace {

constexpr int kStepColumns = 4;
// Bytes of packed activations of one token in one step.
constexpr int kTokenStepBytes = 8;
constexpr int kMaxTokens = 12;
constexpr int kMaxPairTokens = 6;

// BF16 bits of an E4M3 code with the sign bit clear. Exact: the subnormals of E4M3 are normal
// numbers of BF16.
constexpr uint16_t DecodeE4M3(int code) {
  if (code == 0) return 0;
  if (code == 0x7f) return 0x7fc0;
  int exponent = code >> 3;
  int mantissa = code & 7;
  if (exponent == 0) {
    exponent = 1;
    while (mantissa < 8) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa -= 8;
  }
  return static_cast<uint16_t>((exponent - 7 + 127) << 7 | mantissa << 4);
}

struct DecodeTables {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};

constexpr DecodeTables MakeDecodeTables() {
  DecodeTables tables = {};
  for (int code = 0; code < 128; ++code) {
    tables.low[code] = static_cast<uint8_t>(DecodeE4M3(code) & 0xff);
    tables.high[code] = static_cast<uint8_t>(DecodeE4M3(code) >> 8);
  }
  return tables;
}

constexpr DecodeTables kDecodeTables = MakeDecodeTables();

struct Operands {
  __m512i first;   // columns 0-1 of the step
  __m512i second;  // columns 2-3
};

struct LoadF8 {
  static constexpr int kBlockBytes = 64;
  static constexpr bool kScaled = true;

  __m512i low0 = _mm512_load_si512(kDecodeTables.low);
  __m512i low1 = _mm512_load_si512(kDecodeTables.low + 64);
  __m512i high0 = _mm512_load_si512(kDecodeTables.high);
  __m512i high1 = _mm512_load_si512(kDecodeTables.high + 64);
  __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));

  Operands operator()(const char* block) const {
    const __m512i codes = _mm512_load_si512(block);
    const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1);
    __m512i high = _mm512_permutex2var_epi8(high0, codes, high1);
    high = _mm512_ternarylogic_epi32(high, codes, sign, 0xf8);  // high | (codes & sign)
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }
};

struct LoadBF16 {
  static constexpr int kBlockBytes = 128;
  static constexpr bool kScaled = false;

  Operands operator()(const char* block) const {
    return {_mm512_load_si512(block), _mm512_load_si512(block + 64)};
  }
};

// Broadcasts two neighbouring activations of one token.
inline __m512bh BroadcastPair(const char* pair) {
  int32_t bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return (__m512bh)_mm512_set1_epi32(bits);
}

// The sums of a tile. They live in registers, so every loop over them has to be unrolled.
template <int kBlocks, int kTokens>
struct Sums {
  __m512 value[kTokens][kBlocks];
};

// Where a tile reads next.
template <int kPanels>
struct Streams {
  const char* weights[kPanels];
  const char* prefetch[kPanels];
  const char* x;
};

// Sums one segment and moves the streams to its end.
template <typename Load, int kPanels, int kTokens>
inline __attribute__((always_inline)) void SumSegment(const Load& load, const MatmulTile& tile,
                                                      Streams<kPanels>& streams,
                                                      Sums<2 * kPanels, kTokens>& sums) {
  constexpr int kBlocks = 2 * kPanels;
  constexpr int kStepBytes = 2 * Load::kBlockBytes;
  const int64_t prefetch_step_bytes = tile.prefetch_step_bytes;
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) sums.value[t][b] = _mm512_setzero_ps();
  }
  for (int64_t step = tile.segment_steps; step > 0; --step) {
    Operands w[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      w[b] = load(streams.weights[b / 2] + b % 2 * Load::kBlockBytes);
    }
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
      for (int line = 0; line < kStepBytes; line += 64) {
        _mm_prefetch(streams.prefetch[p] + line, _MM_HINT_T0);
      }
      streams.prefetch[p] += prefetch_step_bytes;
      streams.weights[p] += kStepBytes;
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const __m512bh pair = BroadcastPair(streams.x + t * kTokenStepBytes);
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        sums.value[t][b] = _mm512_dpbf16_ps(sums.value[t][b], (__m512bh)w[b].first, pair);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const __m512bh pair = BroadcastPair(streams.x + t * kTokenStepBytes + kTokenStepBytes / 2);
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        sums.value[t][b] = _mm512_dpbf16_ps(sums.value[t][b], (__m512bh)w[b].second, pair);
      }
    }
    streams.x += kTokens * kTokenStepBytes;
  }
}

// The rows of a block that exist.
inline __mmask16 BlockMask(const MatmulTile& tile, int block) {
  const int left = tile.panels[block / 2].rows - block % 2 * kBlockRows;
  if (left >= kBlockRows) return 0xffff;
  return left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

template <int kBlocks, int kTokens>
inline __attribute__((always_inline)) void Scale(const MatmulTile& tile,
                                                 Sums<kBlocks, kTokens>& sums) {
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) {
    const float* scales = tile.panels[b / 2].scales + b % 2 * kBlockRows;
    const __m512 scale = _mm512_maskz_loadu_ps(BlockMask(tile, b), scales);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) sums.value[t][b] = _mm512_mul_ps(sums.value[t][b], scale);
  }
}

template <int kBlocks, int kTokens>
inline __attribute__((always_inline)) void ScaleTokens(const MatmulTile& tile, int segment,
                                                       Sums<kBlocks, kTokens>& sums) {
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
    const __m512 scale = _mm512_set1_ps(tile.token_scales[t * tile.token_scale_stride + segment]);
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) sums.value[t][b] = _mm512_mul_ps(sums.value[t][b], scale);
  }
}

// Adds the finished subtree to its left.
template <int kBlocks, int kTokens>
inline __attribute__((always_inline)) void AddSubtree(const Sums<kBlocks, kTokens>& subtree,
                                                      Sums<kBlocks, kTokens>& sums) {
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      sums.value[t][b] = _mm512_add_ps(subtree.value[t][b], sums.value[t][b]);
    }
  }
}

template <int kBlocks, int kTokens>
inline __attribute__((always_inline)) void Save(const Sums<kBlocks, kTokens>& sums,
                                                Sums<kBlocks, kTokens>& subtree) {
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) subtree.value[t][b] = sums.value[t][b];
  }
}

template <int kBlocks, int kTokens>
inline __attribute__((always_inline)) void Store(const MatmulTile& tile,
                                                 const Sums<kBlocks, kTokens>& sums) {
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) {
    const __mmask16 mask = BlockMask(tile, b);
    float* out = tile.panels[b / 2].out + b % 2 * kBlockRows;
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      _mm512_mask_storeu_ps(out + t * tile.out_stride, mask, sums.value[t][b]);
    }
  }
}

template <typename Load, int kPanels, int kTokens>
void ComputeTile(const MatmulTile& tile) {
  using TileSums = Sums<2 * kPanels, kTokens>;
  const Load load;
  Streams<kPanels> streams;
  for (int p = 0; p < kPanels; ++p) {
    streams.weights[p] = static_cast<const char*>(tile.panels[p].weights);
    streams.prefetch[p] = tile.panels[p].prefetch;
  }
  streams.x = static_cast<const char*>(tile.x);
  // Finished subtrees, one of each size, like the digits of a binary counter.
  TileSums subtrees[kMaxTreeLevels];
  for (int segment = 0; segment < tile.segments; ++segment) {
    TileSums sums;
    SumSegment<Load, kPanels, kTokens>(load, tile, streams, sums);
    if constexpr (Load::kScaled) {
      Scale(tile, sums);
      if (tile.token_scales != nullptr) ScaleTokens(tile, segment, sums);
    }
    int level = 0;
    for (; (segment >> level & 1) != 0; ++level) AddSubtree(subtrees[level], sums);
    if (segment + 1 < tile.segments) {
      Save(sums, subtrees[level]);
    } else {
      Store(tile, sums);
    }
  }
}

using TileFunction = void (*)(const MatmulTile&);

template <typename Load>
TileFunction ChooseTile(int panels, int tokens) {
  static constexpr TileFunction kPair[kMaxPairTokens] = {
      ComputeTile<Load, 2, 1>, ComputeTile<Load, 2, 2>, ComputeTile<Load, 2, 3>,
      ComputeTile<Load, 2, 4>, ComputeTile<Load, 2, 5>, ComputeTile<Load, 2, 6>};
  static constexpr TileFunction kSingle[kMaxTokens] = {
      ComputeTile<Load, 1, 1>,  ComputeTile<Load, 1, 2>,  ComputeTile<Load, 1, 3>,
      ComputeTile<Load, 1, 4>,  ComputeTile<Load, 1, 5>,  ComputeTile<Load, 1, 6>,
      ComputeTile<Load, 1, 7>,  ComputeTile<Load, 1, 8>,  ComputeTile<Load, 1, 9>,
      ComputeTile<Load, 1, 10>, ComputeTile<Load, 1, 11>, ComputeTile<Load, 1, 12>};
  return (panels == 2 ? kPair : kSingle)[tokens - 1];
}

void Tile(DType dtype, const MatmulTile& tile) {
  const TileFunction compute = dtype == DType::kF8E4M3
                                   ? ChooseTile<LoadF8>(tile.panel_count, tile.tokens)
                                   : ChooseTile<LoadBF16>(tile.panel_count, tile.tokens);
  compute(tile);
}

// Copies `steps` whole steps of every token; x and out are those of the first step.
void PackSteps(const TokenGroup& group, const BFloat16* x, int64_t steps, char* out) {
  for (int token = 0; token < group.tokens; ++token) {
    const BFloat16* from = x + token * group.x_stride;
    char* to = out + token * kTokenStepBytes;
    for (int64_t step = 0; step < steps; ++step) {
      std::memcpy(to, from, kTokenStepBytes);
      from += kStepColumns;
      to += group.tokens * kTokenStepBytes;
    }
  }
}

void PackTokens(const TokenGroup& group, void* packed) {
  // A cache line of every token, so that what is written stays in the first-level cache until it is
  // complete.
  constexpr int64_t kStepsAtOnce = 8;
  const int64_t step_bytes = group.tokens * kTokenStepBytes;
  const int64_t whole_steps = group.segment_columns / kStepColumns;
  const int64_t rest_bytes = group.segment_columns % kStepColumns * sizeof(BFloat16);
  char* out = static_cast<char*>(packed);
  for (int segment = 0; segment < group.segments; ++segment) {
    const BFloat16* x = group.x + segment * group.segment_columns;
    for (int64_t step = 0; step < whole_steps; step += kStepsAtOnce) {
      const int64_t left = whole_steps - step;
      PackSteps(group, x + step * kStepColumns, left < kStepsAtOnce ? left : kStepsAtOnce,
                out + step * step_bytes);
    }
    if (rest_bytes > 0) {
      for (int token = 0; token < group.tokens; ++token) {
        char* to = out + whole_steps * step_bytes + token * kTokenStepBytes;
        std::memset(to, 0, kTokenStepBytes);
        std::memcpy(to, x + token * group.x_stride + whole_steps * kStepColumns, rest_bytes);
      }
    }
    out += group.segment_steps * step_bytes;
  }
}

constexpr MatmulKernel kKernel = {.step_columns = kStepColumns,
                                  .x_element_bytes = 2,
                                  .max_tokens = kMaxTokens,
                                  .max_pair_tokens = kMaxPairTokens,
                                  .pack_tokens = PackTokens,
                                  .tile = Tile};

// Packs one row of one panel; row is its place in the panel. The size of an element is known to the
// compiler, so that whole steps are plain loads and stores.
template <size_t kElementBytes>
void PackElements(const PanelLayout& layout, int segments, const char* source, int row,
                  char* panel) {
  constexpr size_t kPairBytes = 2 * kElementBytes;
  constexpr size_t kStepBytes = 2 * kPairBytes;
  constexpr size_t kBlockBytes = kBlockRows * kStepBytes;
  // FP8 alternates the column pairs every 4 rows, BF16 every 16.
  constexpr int kAlternation = kElementBytes == 1 ? 4 : kBlockRows;
  constexpr size_t kSecondOffset = kAlternation * kPairBytes;
  const int row_in_block = row % kBlockRows;
  char* to = panel + row / kBlockRows * kBlockBytes +
             row_in_block / kAlternation * 2 * kSecondOffset +
             row_in_block % kAlternation * kPairBytes;
  const auto step = [&to](const char* elements) {
    std::memcpy(to, elements, kPairBytes);
    std::memcpy(to + kSecondOffset, elements + kPairBytes, kPairBytes);
    to += 2 * kBlockBytes;
  };
  const int64_t segment_bytes = layout.segment_columns * static_cast<int64_t>(kElementBytes);
  const int64_t rest_bytes = segment_bytes % static_cast<int64_t>(kStepBytes);
  for (int segment = 0; segment < segments; ++segment) {
    const char* end = source + segment_bytes;
    for (; source + kStepBytes <= end; source += kStepBytes) step(source);
    if (rest_bytes == 0) continue;
    char elements[kStepBytes] = {};
    std::memcpy(elements, source, static_cast<size_t>(rest_bytes));
    step(elements);
    source = end;
  }
}

void PackRow(const PanelLayout& layout, int segments, size_t element_bytes, const char* source,
             int row, char* panel) {
  if (element_bytes == 1) {
    PackElements<1>(layout, segments, source, row, panel);
  } else {
    PackElements<2>(layout, segments, source, row, panel);
  }
}

}  // namespace

size_t WeightBytes(const WeightShape& shape) {
  const PanelLayout layout = MakePanelLayout(shape, kStepColumns);
  return static_cast<size_t>(layout.panels * layout.panel_bytes);
}

void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count, const void* source) {
  PackPanels(weight, first_row, count, source, kStepColumns, PackRow);
}

void Matmul(ThreadPool& pool, const Tensor& x, const PackedWeight& weight, const Tensor& out) {
  RunMatmul(kKernel, pool, x, weight, out);
}

void MultiplyQuantized(ThreadPool& pool, const QuantizedActivations& x, const PackedWeight& weight,
                       const Tensor& out) {
  RunQuantizedMatmul(kKernel, pool, x, weight, out);
}

}  // namespace marcoro::cpu::avx512
