// Matmul with AVX2, FMA and F16C. A step is one column: 32 elements, one of each row of the panel.
// Activations are packed as F32, (column, token). E4M3 codes go through F16, whose exponent has one
// bit more: the same bits there mean the value times 2^-8, subnormals included; the factor is made
// up for once per segment.
//
// An output element is one chain of fused multiply-adds over its segment's columns in order, times
// the row's scale, then the tree.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/matmul_driver.h"

namespace marcoro::cpu::avx2 {
namespace {

constexpr int kMaxTokens = 24;
// Tokens whose sums fit the registers, with one block of rows.
constexpr int kRegisterTokens = 6;
// Columns that are decoded together when a tile has more tokens than that.
constexpr int kChunkColumns = 128;
constexpr int kBlockVectors = kBlockRows / 8;

struct Block {
  __m256 value[kBlockVectors];
};

struct LoadF8 {
  static constexpr int kElementBytes = 1;
  static constexpr int kStrideBytes = kPanelRows;
  static constexpr float kFactor = 256.0f;

  Block operator()(const char* block) const {
    const __m128i codes = _mm_load_si128(reinterpret_cast<const __m128i*>(block));
    const __m256i high = _mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8);
    __m256i half = _mm256_and_si256(_mm256_srai_epi16(high, 1),
                                    _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
    const __m256i nan_code = _mm256_set1_epi16(0x3f80);
    // All bits set is a NaN of F16.
    half = _mm256_or_si256(half, _mm256_cmpeq_epi16(_mm256_and_si256(half, nan_code), nan_code));
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
  }
};

struct LoadBF16 {
  static constexpr int kElementBytes = 2;
  static constexpr int kStrideBytes = 2 * kPanelRows;
  static constexpr float kFactor = 1.0f;

  Block operator()(const char* block) const {
    const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(block));
    const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(bits));
    const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(bits, 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
  }
};

// Weights that have been decoded to (column, 16 rows).
struct LoadF32 {
  static constexpr int kElementBytes = 4;
  static constexpr int kStrideBytes = 4 * kBlockRows;

  Block operator()(const char* block) const {
    const float* values = reinterpret_cast<const float*>(block);
    return {_mm256_load_ps(values), _mm256_load_ps(values + 8)};
  }
};

// Sums of a tile: for every token its 32 rows.
struct Sums {
  alignas(32) float value[kMaxTokens][kPanelRows];
};

// Adds `columns` columns to the sums of kTokens tokens and kBlocks blocks. x is (column, x_stride
// tokens).
template <typename Load, int kBlocks, int kTokens>
void AddColumns(const char* weights, const float* x, int64_t x_stride, int64_t columns,
                float* sums) {
  const Load load;
  Block sum[kTokens][kBlocks];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
#pragma GCC unroll 2
      for (int v = 0; v < kBlockVectors; ++v) {
        sum[t][b].value[v] = _mm256_load_ps(sums + t * kPanelRows + b * kBlockRows + v * 8);
      }
    }
  }
  for (int64_t column = 0; column < columns; ++column) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
      const Block w = load(weights + b * kBlockRows * Load::kElementBytes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const __m256 activation = _mm256_broadcast_ss(x + t);
#pragma GCC unroll 2
        for (int v = 0; v < kBlockVectors; ++v) {
          sum[t][b].value[v] = _mm256_fmadd_ps(w.value[v], activation, sum[t][b].value[v]);
        }
      }
    }
    weights += Load::kStrideBytes;
    x += x_stride;
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
#pragma GCC unroll 2
      for (int v = 0; v < kBlockVectors; ++v) {
        _mm256_store_ps(sums + t * kPanelRows + b * kBlockRows + v * 8, sum[t][b].value[v]);
      }
    }
  }
}

using AddFunction = void (*)(const char* weights, const float* x, int64_t x_stride, int64_t columns,
                             float* sums);

// For one block of rows.
template <typename Load>
AddFunction ChooseAdd(int tokens) {
  static constexpr AddFunction kFunctions[kRegisterTokens] = {
      AddColumns<Load, 1, 1>, AddColumns<Load, 1, 2>, AddColumns<Load, 1, 3>,
      AddColumns<Load, 1, 4>, AddColumns<Load, 1, 5>, AddColumns<Load, 1, 6>};
  return kFunctions[tokens - 1];
}

// Few tokens: decodes on the way to the product.
template <typename Load>
void SumSegmentDirectly(const char* weights, const float* x, int tokens, int64_t columns,
                        Sums& sums) {
  float* to = sums.value[0];
  if (tokens == 1) return AddColumns<Load, 2, 1>(weights, x, tokens, columns, to);
  if (tokens == 2) return AddColumns<Load, 2, 2>(weights, x, tokens, columns, to);
  for (int block = 0; block < 2; ++block) {
    ChooseAdd<Load>(tokens)(weights + block * kBlockRows * Load::kElementBytes, x, tokens, columns,
                            to + block * kBlockRows);
  }
}

// Many tokens: decodes each chunk of columns once for all of them.
template <typename Load>
void SumSegmentInChunks(const char* weights, const float* x, int tokens, int64_t columns,
                        Sums& sums) {
  alignas(64) float decoded[kChunkColumns * kBlockRows];
  const Load load;
  for (int64_t begin = 0; begin < columns; begin += kChunkColumns) {
    const int64_t chunk = columns - begin < kChunkColumns ? columns - begin : kChunkColumns;
    for (int block = 0; block < 2; ++block) {
      const char* from =
          weights + begin * Load::kStrideBytes + block * kBlockRows * Load::kElementBytes;
      for (int64_t i = 0; i < chunk; ++i) {
        const Block w = load(from + i * Load::kStrideBytes);
        _mm256_store_ps(decoded + i * kBlockRows, w.value[0]);
        _mm256_store_ps(decoded + i * kBlockRows + 8, w.value[1]);
      }
      for (int token = 0; token < tokens; token += kRegisterTokens) {
        const int count = tokens - token < kRegisterTokens ? tokens - token : kRegisterTokens;
        ChooseAdd<LoadF32>(count)(reinterpret_cast<const char*>(decoded),
                                  x + begin * tokens + token, tokens, chunk,
                                  sums.value[token] + block * kBlockRows);
      }
    }
  }
}

// Multiplies a finished segment by the factor that its decoding left out and by the scales.
template <typename Load>
void Scale(const MatmulTile& tile, Sums& sums) {
  const MatmulTile::Panel& panel = tile.panels[0];
  if (panel.scales == nullptr) return;
  float scales[kPanelRows] = {};
  std::memcpy(scales, panel.scales, panel.rows * sizeof(float));
  for (int t = 0; t < tile.tokens; ++t) {
    for (int r = 0; r < kPanelRows; ++r) {
      sums.value[t][r] = sums.value[t][r] * Load::kFactor * scales[r];
    }
  }
}

// Multiplies a finished segment by its tokens' scales.
void ScaleTokens(const MatmulTile& tile, int segment, Sums& sums) {
  if (tile.token_scales == nullptr) return;
  for (int t = 0; t < tile.tokens; ++t) {
    const float scale = tile.token_scales[t * tile.token_scale_stride + segment];
    for (int r = 0; r < kPanelRows; ++r) sums.value[t][r] *= scale;
  }
}

template <typename Load>
void ComputeTile(const MatmulTile& tile) {
  const char* weights = static_cast<const char*>(tile.panels[0].weights);
  const float* x = static_cast<const float*>(tile.x);
  Sums sums;
  // Finished subtrees, one of each size, like the digits of a binary counter.
  Sums subtrees[kMaxTreeLevels];
  for (int segment = 0; segment < tile.segments; ++segment) {
    std::memset(&sums, 0, tile.tokens * sizeof(sums.value[0]));
    if (tile.tokens <= kRegisterTokens) {
      SumSegmentDirectly<Load>(weights, x, tile.tokens, tile.segment_steps, sums);
    } else {
      SumSegmentInChunks<Load>(weights, x, tile.tokens, tile.segment_steps, sums);
    }
    weights += tile.segment_steps * Load::kStrideBytes;
    x += tile.segment_steps * tile.tokens;
    Scale<Load>(tile, sums);
    ScaleTokens(tile, segment, sums);
    int level = 0;
    for (int digits = segment; (digits & 1) != 0; digits >>= 1, ++level) {
      for (int t = 0; t < tile.tokens; ++t) {
        for (int r = 0; r < kPanelRows; ++r) {
          sums.value[t][r] = subtrees[level].value[t][r] + sums.value[t][r];
        }
      }
    }
    if (segment + 1 < tile.segments) {
      std::memcpy(&subtrees[level], &sums, tile.tokens * sizeof(sums.value[0]));
    }
  }
  for (int t = 0; t < tile.tokens; ++t) {
    std::memcpy(tile.panels[0].out + t * tile.out_stride, sums.value[t],
                tile.panels[0].rows * sizeof(float));
  }
}

void Tile(DType dtype, const MatmulTile& tile) {
  if (dtype == DType::kF8E4M3) {
    ComputeTile<LoadF8>(tile);
  } else {
    ComputeTile<LoadBF16>(tile);
  }
}

void PackTokens(const TokenGroup& group, void* packed) {
  char* out = static_cast<char*>(packed);
  const int64_t columns = group.segments * group.segment_columns;
  for (int token = 0; token < group.tokens; ++token) {
    const BFloat16* x = group.x + token * group.x_stride;
    char* to = out + token * sizeof(float);
    for (int64_t column = 0; column < columns; ++column) {
      const uint32_t bits = static_cast<uint32_t>(x[column].bits) << 16;
      std::memcpy(to, &bits, sizeof(bits));
      to += group.tokens * sizeof(float);
    }
  }
}

constexpr MatmulKernel kKernel = {.step_columns = 1,
                                  .x_element_bytes = 4,
                                  .max_tokens = kMaxTokens,
                                  .max_pair_tokens = 0,
                                  .pack_tokens = PackTokens,
                                  .tile = Tile};

void PackRow(const PanelLayout& layout, int segments, size_t element_bytes, const char* source,
             int row, char* panel) {
  char* to = panel + row * element_bytes;
  for (int64_t step = 0; step < layout.steps; ++step) {
    std::memcpy(to, source, element_bytes);
    source += element_bytes;
    to += kPanelRows * element_bytes;
  }
}

}  // namespace

size_t WeightBytes(const WeightShape& shape) {
  const PanelLayout layout = MakePanelLayout(shape, kKernel.step_columns);
  return static_cast<size_t>(layout.panels * layout.panel_bytes);
}

void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count, const void* source) {
  PackPanels(weight, first_row, count, source, kKernel.step_columns, PackRow);
}

void Matmul(ThreadPool& pool, const Tensor& x, const PackedWeight& weight, const Tensor& out) {
  RunMatmul(kKernel, pool, x, weight, out);
}

void MultiplyQuantized(ThreadPool& pool, const QuantizedActivations& x, const PackedWeight& weight,
                       const Tensor& out) {
  RunQuantizedMatmul(kKernel, pool, x, weight, out);
}

}  // namespace marcoro::cpu::avx2
