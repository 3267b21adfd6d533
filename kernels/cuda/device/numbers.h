// Arithmetic whose rounding matters. What is named here rounds once, to nearest even, on every
// machine, except Exp2, of which each machine has its own.
#pragma once

#include "kernels/cuda/device/platform.h"

#ifdef MARCORO_SIMT
#include <bit>
#include <cmath>
#include <cstring>
#endif

namespace marcoro::cuda {

// Vectors that are loaded and stored at once.
struct alignas(8) Words2 {
  uint32_t word[2];
};
struct alignas(16) Words4 {
  uint32_t word[4];
};
struct alignas(16) Float4 {
  float value[4];
};

#ifdef MARCORO_SIMT

MARCORO_DEVICE float BitsToFloat(uint32_t bits) { return std::bit_cast<float>(bits); }
MARCORO_DEVICE uint32_t FloatToBits(float value) { return std::bit_cast<uint32_t>(value); }
MARCORO_DEVICE float Add(float a, float b) { return a + b; }
MARCORO_DEVICE float Multiply(float a, float b) { return a * b; }
MARCORO_DEVICE float MultiplyAdd(float a, float b, float c) { return std::fma(a, b, c); }
MARCORO_DEVICE float Divide(float a, float b) { return a / b; }
MARCORO_DEVICE float SquareRoot(float a) { return std::sqrt(a); }
// 2^a with an error of about 2 units in the last place; subnormal results are 0.
MARCORO_DEVICE float Exp2(float a) {
  const float result = std::exp2(a);
  return result < 1.17549435e-38f ? 0.0f : result;
}
MARCORO_DEVICE float Max(float a, float b) { return std::fmax(a, b); }
// Two BF16, `low` in the lower half. NaN becomes 0x7fff.
MARCORO_DEVICE uint32_t PackBf16(float low, float high) {
  const auto round = [](float value) -> uint32_t {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  };
  return round(low) | round(high) << 16;
}
// The products of the lower and of the upper halves, each rounded to BF16.
MARCORO_DEVICE uint32_t MultiplyBf16Pair(uint32_t a, uint32_t b) {
  const auto half = [](uint32_t bits) { return std::bit_cast<float>(bits << 16); };
  return PackBf16(half(a & 0xffffu) * half(b & 0xffffu), half(a >> 16) * half(b >> 16));
}

#else

MARCORO_DEVICE float BitsToFloat(uint32_t bits) { return __uint_as_float(bits); }
MARCORO_DEVICE uint32_t FloatToBits(float value) { return __float_as_uint(value); }
MARCORO_DEVICE float Add(float a, float b) { return __fadd_rn(a, b); }
MARCORO_DEVICE float Multiply(float a, float b) { return __fmul_rn(a, b); }
MARCORO_DEVICE float MultiplyAdd(float a, float b, float c) { return __fmaf_rn(a, b, c); }
MARCORO_DEVICE float Divide(float a, float b) { return __fdiv_rn(a, b); }
MARCORO_DEVICE float SquareRoot(float a) { return __fsqrt_rn(a); }
MARCORO_DEVICE float Exp2(float a) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
}
MARCORO_DEVICE float Max(float a, float b) { return fmaxf(a, b); }
MARCORO_DEVICE uint32_t PackBf16(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}
MARCORO_DEVICE uint32_t MultiplyBf16Pair(uint32_t a, uint32_t b) {
  uint32_t result;  // a · b + (-0): sm_80 has the fused operation only
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(0x80008000u));
  return result;
}

#endif

MARCORO_DEVICE float Subtract(float a, float b) { return Add(a, -b); }
MARCORO_DEVICE float LowBf16(uint32_t pair) { return BitsToFloat(pair << 16); }
MARCORO_DEVICE float HighBf16(uint32_t pair) { return BitsToFloat(pair & 0xffff0000u); }
MARCORO_DEVICE uint16_t RoundBf16(float value) {
  return static_cast<uint16_t>(PackBf16(value, 0) & 0xffffu);
}
MARCORO_DEVICE float Bf16ToFloat(uint16_t bits) {
  return BitsToFloat(static_cast<uint32_t>(bits) << 16);
}
MARCORO_DEVICE bool IsNan(float value) { return value != value; }

}  // namespace marcoro::cuda
