// E4M3FN codes as the KV cache has them: none is NaN, and 64 of them lie in the order in which
// decoding gives vectors of pairs (kv_layout.h). As simd.h, for the sources that are compiled once
// per instruction set.
#pragma once

#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

MARCORO_INLINE int32_t BitsOf(float value) { return __builtin_bit_cast(int32_t, value); }

// The scale of a key's or value's elements: NaN where one of them is not finite.
MARCORO_INLINE float ScaleOf(const float* elements, int32_t count) {
  constexpr int32_t kInfinity = 0x7f800000;
  // Magnitudes compare like the integers of their bits, and NaN above all.
  int32_t largest = 0;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t magnitude = BitsOf(elements[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest >= kInfinity) return __builtin_nanf("");
  if (largest == 0) return 1;
  const float scale = __builtin_bit_cast(float, largest) / 448;
  constexpr float kSmallest = 0x1p-149f;
  return scale > kSmallest ? scale : kSmallest;
}

// The nearest code, the even one of two as near; ±448 beyond that. `value` is not NaN.
MARCORO_INLINE uint8_t E4M3Of(float value) {
  constexpr int32_t kSmallestNormal = (127 - 6) << 23;  // 2⁻⁶
  constexpr int32_t kRebias = (127 - 7) << 3;
  constexpr int32_t kLargest = 0x7e;
  const int32_t bits = BitsOf(value);
  const int32_t magnitude = bits & 0x7fffffff;
  // Three bits of the mantissa are left; a carry goes into the exponent, where it belongs.
  const int32_t unbounded = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) - kRebias;
  const int32_t normal = unbounded < kLargest ? unbounded : kLargest;
  // Below the smallest normal number codes count in steps of 2⁻⁹, which is one unit in the last
  // place of 2¹⁴: the addition rounds.
  const float sum = __builtin_bit_cast(float, magnitude) + 16384.0f;
  const int32_t subnormal = BitsOf(sum) - BitsOf(16384.0f);
  const int32_t code = magnitude < kSmallestNormal ? subnormal : normal;
  return static_cast<uint8_t>(code | (bits >> 24 & 0x80));
}

#if defined(__AVX512F__)

// Two vectors of pairs: numbers of codes times kDecodedUnit.
struct PairsOfCodes {
  Pairs first;
  Pairs second;
};

constexpr float kDecodedUnit = 1;

// The bytes of a code's BF16 with the sign bit clear, by code. Exact: the subnormals of E4M3 are
// normal numbers of BF16. What would be NaN continues the others' row: 480.
struct DecodingTables {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};

constexpr DecodingTables MakeDecodingTables() {
  DecodingTables tables = {};
  for (int code = 1; code < 128; ++code) {
    int exponent = code >> 3;
    int mantissa = code & 7;
    if (exponent == 0) {
      for (exponent = 1; mantissa < 8; mantissa *= 2) --exponent;
    }
    const int bits = (exponent - 7 + 127) << 7 | (mantissa & 7) << 4;
    tables.low[code] = static_cast<uint8_t>(bits & 0xff);
    tables.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return tables;
}

constexpr DecodingTables kDecodingTables = MakeDecodingTables();

// Held where it is used again and again: tables in registers.
class Decoder {
 public:
  // The 64 codes of a unit.
  MARCORO_INLINE PairsOfCodes operator()(const char* codes) const {
    const __m512i code = _mm512_loadu_si512(codes);
    const __m512i low = _mm512_permutex2var_epi8(low0_, code, low1_);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0_, code, high1_);
    // The sign of the code, the rest of the magnitude.
    const __m512i high = _mm512_ternarylogic_epi32(sign_, code, magnitude, 0xca);
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }

 private:
  __m512i low0_ = _mm512_load_si512(kDecodingTables.low);
  __m512i low1_ = _mm512_load_si512(kDecodingTables.low + 64);
  __m512i high0_ = _mm512_load_si512(kDecodingTables.high);
  __m512i high1_ = _mm512_load_si512(kDecodingTables.high + 64);
  __m512i sign_ = _mm512_set1_epi8(static_cast<char>(0x80));
};

#else  // AVX2

// Half precision, whose exponent has one bit more than that of E4M3, gives code · 2⁻⁸, subnormals
// included.
constexpr float kDecodedUnit = 1.0f / 256;

class Decoder {
 public:
  // Of the 32 codes of a unit that belong to eight lanes the first and the second pair of each
  // lane: numbers of codes times kDecodedUnit.
  MARCORO_INLINE Pairs First(const char* codes) const {
    return Widen(_mm256_shuffle_epi8(Load(codes), first_));
  }
  MARCORO_INLINE Pairs Second(const char* codes) const {
    return Widen(_mm256_shuffle_epi8(Load(codes), second_));
  }

 private:
  MARCORO_INLINE static __m256i Load(const char* codes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  }
  // Of 16 codes, in the upper bytes of their words: in each half four first elements of pairs, then
  // the four second ones.
  MARCORO_INLINE static Pairs Widen(__m256i codes) {
    const __m256i halves = _mm256_and_si256(_mm256_srai_epi16(codes, 1),
                                            _mm256_set1_epi16(static_cast<short>(0xbf80)));
    const __m256i ordered = _mm256_permute4x64_epi64(halves, 0xd8);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(ordered)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(ordered, 1))};
  }

  static constexpr char kNone = static_cast<char>(0x80);  // gives 0
  __m256i first_ = _mm256_broadcastsi128_si256(_mm_setr_epi8(
      kNone, 0, kNone, 2, kNone, 4, kNone, 6, kNone, 1, kNone, 3, kNone, 5, kNone, 7));
  __m256i second_ = _mm256_broadcastsi128_si256(_mm_setr_epi8(
      kNone, 8, kNone, 10, kNone, 12, kNone, 14, kNone, 9, kNone, 11, kNone, 13, kNone, 15));
};

#endif

}  // namespace
}  // namespace marcoro::cpu::MARCORO_ISA
