// The vector vocabulary in which the ops are written, once for each instruction set: MARCORO_ISA
// (avx2 or avx512, set by the build together with the compiler's flags) names the namespace.
//
// Everything here has internal linkage, and the sources that use it stay clear of inline functions
// of other headers: the linker keeps one copy of those, and it must not be one with instructions
// that the processor lacks. The sources are compiled without floating-point contraction, so that an
// operation gives the same bits wherever it is inlined.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/tensor.h"

#if defined(__clang__)
#define MARCORO_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MARCORO_UNROLL _Pragma("GCC unroll 16")
#endif
#define MARCORO_INLINE [[gnu::always_inline, maybe_unused]] inline

namespace marcoro::cpu::MARCORO_ISA {
namespace {

#if defined(__AVX512F__)

constexpr int kLanes = 16;
using Float = __m512;

MARCORO_INLINE __mmask16 FirstLanes(int64_t count) {
  return static_cast<__mmask16>((1u << count) - 1);
}

MARCORO_INLINE Float Set(float value) { return _mm512_set1_ps(value); }
MARCORO_INLINE Float Load(const float* from) { return _mm512_loadu_ps(from); }
// The first `count` lanes from memory, the others `fill`; what lies behind them is not touched.
MARCORO_INLINE Float LoadFirst(const float* from, int64_t count, float fill) {
  return _mm512_mask_loadu_ps(Set(fill), FirstLanes(count), from);
}
MARCORO_INLINE void Store(Float v, float* to) { _mm512_storeu_ps(to, v); }
MARCORO_INLINE void StoreFirst(Float v, int64_t count, float* to) {
  _mm512_mask_storeu_ps(to, FirstLanes(count), v);
}

MARCORO_INLINE Float LoadBf16(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
MARCORO_INLINE Float LoadFirstBf16(const BFloat16* from, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16(FirstLanes(count), from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// Rounds to nearest even.
MARCORO_INLINE void StoreBf16(Float v, BFloat16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(v));
}
MARCORO_INLINE void StoreFirstBf16(Float v, int64_t count, BFloat16* to) {
  _mm256_mask_storeu_epi16(to, FirstLanes(count), (__m256i)_mm512_cvtneps_pbh(v));
}

MARCORO_INLINE Float Add(Float a, Float b) { return _mm512_add_ps(a, b); }
MARCORO_INLINE Float Sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
MARCORO_INLINE Float Mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
MARCORO_INLINE Float Div(Float a, Float b) { return _mm512_div_ps(a, b); }
MARCORO_INLINE Float Sqrt(Float a) { return _mm512_sqrt_ps(a); }
// b where either is NaN.
MARCORO_INLINE Float Max(Float a, Float b) { return _mm512_max_ps(a, b); }
MARCORO_INLINE Float Min(Float a, Float b) { return _mm512_min_ps(a, b); }
MARCORO_INLINE Float MulAdd(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
MARCORO_INLINE Float NegativeMulAdd(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }
MARCORO_INLINE Float Round(Float a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// a · 2ⁿ for integral n, rounded once.
MARCORO_INLINE Float Scale(Float a, Float n) { return _mm512_scalef_ps(a, n); }

// One bit a lane.
MARCORO_INLINE uint32_t EqualBits(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
MARCORO_INLINE uint32_t NanBits(Float a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }

// v where first_lane + lane lies in [low, high], elsewhere fill.
MARCORO_INLINE Float KeepBetween(Float v, int first_lane, int low, int high, float fill) {
  const __m512i index =
      _mm512_add_epi32(_mm512_set1_epi32(first_lane),
                       _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const __mmask16 keep =
      static_cast<__mmask16>(_mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(low)) &
                             _mm512_cmple_epi32_mask(index, _mm512_set1_epi32(high)));
  return _mm512_mask_mov_ps(Set(fill), keep, v);
}

MARCORO_INLINE __m256 LowerHalf(Float v) { return _mm512_castps512_ps256(v); }
MARCORO_INLINE __m256 UpperHalf(Float v) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
}
MARCORO_INLINE __m256 AddHalves(Float v) { return _mm256_add_ps(LowerHalf(v), UpperHalf(v)); }
MARCORO_INLINE __m256 MaxHalves(Float v) { return _mm256_max_ps(LowerHalf(v), UpperHalf(v)); }

// Pairs of BF16: 16 lanes of two neighbours each.
using Pairs = __m512i;
MARCORO_INLINE Pairs LoadPairs(const BFloat16* from) { return _mm512_loadu_si512(from); }
MARCORO_INLINE Pairs LoadPairs(const BFloat16* from, uint32_t keep_bits) {
  return _mm512_and_si512(_mm512_loadu_si512(from), _mm512_set1_epi32(static_cast<int>(keep_bits)));
}
MARCORO_INLINE Pairs BroadcastPair(const BFloat16* from) {
  int32_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
// c + a.first · b.first + a.second · b.second in each lane.
MARCORO_INLINE Float DotPairs(Float c, Pairs a, Pairs b) {
  return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}

#else  // AVX2

constexpr int kLanes = 8;
using Float = __m256;

MARCORO_INLINE __m256i FirstLanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

MARCORO_INLINE Float Set(float value) { return _mm256_set1_ps(value); }
MARCORO_INLINE Float Load(const float* from) { return _mm256_loadu_ps(from); }
// The first `count` lanes from memory, the others `fill`; what lies behind them is not touched.
MARCORO_INLINE Float LoadFirst(const float* from, int64_t count, float fill) {
  const __m256i mask = FirstLanes(count);
  return _mm256_blendv_ps(Set(fill), _mm256_maskload_ps(from, mask), _mm256_castsi256_ps(mask));
}
MARCORO_INLINE void Store(Float v, float* to) { _mm256_storeu_ps(to, v); }
MARCORO_INLINE void StoreFirst(Float v, int64_t count, float* to) {
  _mm256_maskstore_ps(to, FirstLanes(count), v);
}

MARCORO_INLINE Float LoadBf16(const BFloat16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
MARCORO_INLINE Float LoadFirstBf16(const BFloat16* from, int64_t count) {
  BFloat16 elements[kLanes] = {};
  std::memcpy(elements, from, static_cast<size_t>(count) * sizeof(BFloat16));
  return LoadBf16(elements);
}
// Rounds to nearest even; NaN stays NaN.
MARCORO_INLINE void StoreBf16(Float v, BFloat16* to) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256i upper =
      _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded),
                                                             _mm256_castsi256_ps(quiet), is_nan)),
                        16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), packed);
}
MARCORO_INLINE void StoreFirstBf16(Float v, int64_t count, BFloat16* to) {
  BFloat16 elements[kLanes];
  StoreBf16(v, elements);
  std::memcpy(to, elements, static_cast<size_t>(count) * sizeof(BFloat16));
}

MARCORO_INLINE Float Add(Float a, Float b) { return _mm256_add_ps(a, b); }
MARCORO_INLINE Float Sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
MARCORO_INLINE Float Mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
MARCORO_INLINE Float Div(Float a, Float b) { return _mm256_div_ps(a, b); }
MARCORO_INLINE Float Sqrt(Float a) { return _mm256_sqrt_ps(a); }
// b where either is NaN.
MARCORO_INLINE Float Max(Float a, Float b) { return _mm256_max_ps(a, b); }
MARCORO_INLINE Float Min(Float a, Float b) { return _mm256_min_ps(a, b); }
MARCORO_INLINE Float MulAdd(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
MARCORO_INLINE Float NegativeMulAdd(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
MARCORO_INLINE Float Round(Float a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MARCORO_INLINE Float PowerOfTwo(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
// a · 2ⁿ for integral n in [-252, 252] and a near 1, rounded once: the first of the two steps is
// exact.
MARCORO_INLINE Float Scale(Float a, Float n) {
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  return Mul(Mul(a, PowerOfTwo(half)), PowerOfTwo(_mm256_sub_epi32(whole, half)));
}

// One bit a lane.
MARCORO_INLINE uint32_t EqualBits(Float a, Float b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
}
MARCORO_INLINE uint32_t NanBits(Float a) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}

// v where first_lane + lane lies in [low, high], elsewhere fill.
MARCORO_INLINE Float KeepBetween(Float v, int first_lane, int low, int high, float fill) {
  const __m256i index =
      _mm256_add_epi32(_mm256_set1_epi32(first_lane), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i drop = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(low), index),
                                       _mm256_cmpgt_epi32(index, _mm256_set1_epi32(high)));
  return _mm256_blendv_ps(v, Set(fill), _mm256_castsi256_ps(drop));
}

MARCORO_INLINE __m256 AddHalves(Float v) { return v; }
MARCORO_INLINE __m256 MaxHalves(Float v) { return v; }

// Pairs of BF16: 8 lanes of two neighbours each, widened.
struct Pairs {
  __m256 first;
  __m256 second;
};
MARCORO_INLINE Pairs WidenPairs(__m256i bits) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
          _mm256_castsi256_ps(
              _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
MARCORO_INLINE Pairs LoadPairs(const BFloat16* from) {
  return WidenPairs(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
MARCORO_INLINE Pairs LoadPairs(const BFloat16* from, uint32_t keep_bits) {
  return WidenPairs(_mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)),
                                     _mm256_set1_epi32(static_cast<int>(keep_bits))));
}
MARCORO_INLINE Pairs BroadcastPair(const BFloat16* from) {
  int32_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return WidenPairs(_mm256_set1_epi32(bits));
}
// c + a.first · b.first + a.second · b.second in each lane.
MARCORO_INLINE Float DotPairs(Float c, Pairs a, Pairs b) {
  return _mm256_fmadd_ps(a.second, b.second, _mm256_fmadd_ps(a.first, b.first, c));
}

#endif

// The sum of all lanes, as a balanced tree: lane i and lane i + half, again and again.
MARCORO_INLINE float Sum(Float v) {
  const __m256 eight = AddHalves(v);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  four = _mm_add_ss(four, _mm_shuffle_ps(four, four, 1));
  return _mm_cvtss_f32(four);
}

MARCORO_INLINE float Largest(Float v) {
  const __m256 eight = MaxHalves(v);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  four = _mm_max_ss(four, _mm_shuffle_ps(four, four, 1));
  return _mm_cvtss_f32(four);
}

// Asks for the cache line of an address that will be read soon. Any address is allowed.
MARCORO_INLINE void Prefetch(const void* from) { __builtin_prefetch(from, 0, 3); }

// eˣ within 2 units in the last place; 0 for -∞ and whatever underflows, +∞ beyond the largest
// float, NaN for NaN. x = n ln 2 + r with |r| ≤ ln 2 / 2, eʳ by its Taylor series: the first term
// left out, r⁸/8!, is below 6e-9.
MARCORO_INLINE Float Exp(Float x) {
  x = Max(Set(-105.0f), Min(Set(90.0f), x));  // in this order of arguments NaN passes
  const Float n = Round(Mul(x, Set(1.44269504f)));
  // ln 2 in two parts, the first of so few bits that n times it is exact.
  Float r = NegativeMulAdd(n, Set(0.693359375f), x);
  r = NegativeMulAdd(n, Set(-2.12194440e-4f), r);
  Float p = Set(1.0f / 5040);
  p = MulAdd(p, r, Set(1.0f / 720));
  p = MulAdd(p, r, Set(1.0f / 120));
  p = MulAdd(p, r, Set(1.0f / 24));
  p = MulAdd(p, r, Set(1.0f / 6));
  p = MulAdd(p, r, Set(0.5f));
  p = MulAdd(p, r, Set(1.0f));
  p = MulAdd(p, r, Set(1.0f));
  return Scale(p, n);
}

}  // namespace
}  // namespace marcoro::cpu::MARCORO_ISA
