// What the matmul kernels share on the device: weights to fragments, activations to shared memory,
// and the order of sums.
#pragma once

#include "kernels/cuda/device/global_memory.h"
#include "kernels/cuda/device/matrix.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/matmul_layout.h"

namespace marcoro::cuda {

// Four E4M3 weights in a word are two pairs of BF16 that have been scaled by 2^-120: an E4M3 code's
// exponent and mantissa, shifted to where BF16 has them, mean just that, subnormals included. Each
// pair needs bits 15, 10-4 of either half. The first pair lies in its place, the second in the gaps
// of the first, so that unpacking takes five logic operations for both.
inline constexpr uint32_t kFirstPair = 0x87f087f0u;
inline constexpr uint32_t kSecondPairRotated8 = 0x07700770u;
inline constexpr uint32_t kSecondPairRotated12 = 0x80808080u;
inline constexpr uint32_t kTwoTo120 = 0x7b807b80u;

MARCORO_DEVICE uint32_t RotateLeft(uint32_t word, int bits) {
  return word << bits | word >> (32 - bits);
}

// The pair of BF16 · 2^-120 of two codes, `low` in the lower half.
MARCORO_DEVICE uint32_t ShiftedPair(uint32_t low, uint32_t high) {
  const auto half = [](uint32_t code) { return (code & 0x80u) << 8 | (code & 0x7fu) << 4; };
  return half(low) | half(high) << 16;
}
MARCORO_DEVICE uint32_t PackPairs(uint32_t first, uint32_t second) {
  return first | RotateLeft(second & kSecondPairRotated8, 24) |
         RotateLeft(second & kSecondPairRotated12, 20);
}
MARCORO_DEVICE void UnpackPairs(uint32_t word, uint32_t& first, uint32_t& second) {
  // Multiplied before the product: products of weights this small would be subnormal.
  first = MultiplyBf16Pair(word & kFirstPair, kTwoTo120);
  second = MultiplyBf16Pair(
      (RotateLeft(word, 8) & kSecondPairRotated8) | (RotateLeft(word, 12) & kSecondPairRotated12),
      kTwoTo120);
}

// A lane's weights of a step, as they are packed, and the A fragments of its two products.
template <DType kWeight>
struct StepWeights {
  static constexpr int kVectors = static_cast<int>(SizeOf(kWeight));
  Words4 words[kVectors];

  // `step`: where the tile's step begins in `memory`.
  MARCORO_DEVICE void Load(const SharedArray<char>& memory, int step) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kVectors; ++i) {
      words[i] = memory.LoadAs<Words4>(step + (i * kWarpThreads + Lane()) * 16);
    }
  }

  // The same from global memory, which is read once.
  MARCORO_DEVICE void Load(const char* step) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kVectors; ++i) {
      words[i] = LoadStreaming(step + (i * kWarpThreads + Lane()) * 16);
    }
  }

  // The A fragment of one of the two products.
  MARCORO_DEVICE void Unpack(int k, uint32_t (&a)[4]) const {
    if constexpr (kWeight == DType::kF8E4M3) {
      UnpackPairs(words[0].word[2 * k], a[0], a[1]);
      UnpackPairs(words[0].word[2 * k + 1], a[2], a[3]);
    } else {
      MARCORO_UNROLL_LOOP
      for (int i = 0; i < 4; ++i) a[i] = words[k].word[i];
    }
  }
  MARCORO_DEVICE void Unpack(uint32_t (&a)[2][4]) const {
    MARCORO_UNROLL_LOOP
    for (int k = 0; k < 2; ++k) Unpack(k, a[k]);
  }
};

// Eight elements of a row, the first `limit` (which may be any number) of them; then zeros.
MARCORO_DEVICE Words4 LoadUnit(const uint16_t* from, int limit, bool vectors) {
  if (vectors && limit >= 8) return *reinterpret_cast<const Words4*>(from);
  Words4 words = {};
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 8; ++i) {
    if (i < limit) words.word[i / 2] |= static_cast<uint32_t>(from[i]) << (i % 2 * 16);
  }
  return words;
}

// Sixteen codes of a row, likewise.
MARCORO_DEVICE Words4 LoadUnit(const uint8_t* from, int limit, bool vectors) {
  if (vectors && limit >= 16) return *reinterpret_cast<const Words4*>(from);
  Words4 words = {};
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 16; ++i) {
    if (i < limit) words.word[i / 4] |= static_cast<uint32_t>(from[i]) << (i % 4 * 8);
  }
  return words;
}

// What a row's segments are multiplied by. Rows beyond the last have none.
struct RawFactor {
  float scale = 1.0f;
  uint32_t nan_rows = 0;
  int bit = 0;

  MARCORO_DEVICE void Load(const WeightView& weight, int row) {
    if (weight.scales == nullptr || row >= weight.layout.rows) return;
    scale = weight.scales[row];
    nan_rows = weight.nan_rows[row / kTileRows];
    bit = row % kTileRows;
  }
  MARCORO_DEVICE float Value() const {
    return (nan_rows >> bit & 1u) != 0 ? BitsToFloat(0x7fc00000u) : scale;
  }
};

// The balanced tree over load(first), …, load(first + kCount - 1). They are nodes of the given
// level of a product's tree; what comes to scale_level is scaled: scale(node, its first).
template <int kCount, typename Load, typename Scale>
MARCORO_DEVICE float SumTree(int level, int scale_level, const Scale& scale, const Load& load,
                             int first = 0) {
  float node;
  if constexpr (kCount == 1) {
    node = load(first);
  } else {
    node = Add(SumTree<kCount / 2>(level, scale_level, scale, load, first),
               SumTree<kCount / 2>(level, scale_level, scale, load, first + kCount / 2));
  }
  return level + Log2(kCount) == scale_level ? scale(node, first) : node;
}

// The same of a count that is known late: 1, 2, 4, 8 or 16.
template <typename Load, typename Scale>
MARCORO_DEVICE float SumTreeOf(int count, int level, int scale_level, const Scale& scale,
                               const Load& load) {
  switch (count) {
    case 1:
      return SumTree<1>(level, scale_level, scale, load);
    case 2:
      return SumTree<2>(level, scale_level, scale, load);
    case 4:
      return SumTree<4>(level, scale_level, scale, load);
    case 8:
      return SumTree<8>(level, scale_level, scale, load);
    default:
      return SumTree<16>(level, scale_level, scale, load);
  }
}

}  // namespace marcoro::cuda
