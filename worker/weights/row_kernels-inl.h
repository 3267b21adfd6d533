// Bodies of RowKernels. Included once by each row_kernels_<isa>.cc, which names the inner namespace
// in MARCORO_ISA and is compiled for that instruction set: plain loops that the compiler
// vectorises. None adds a product to a sum, so that no variant can differ by a fused operation. No
// template of the standard library either: the linker could give its copy for one instruction set
// to the whole program.
#pragma once

#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace MARCORO_ISA {
namespace {

inline float AsFloat(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t AsBits(float value) { return __builtin_bit_cast(uint32_t, value); }
inline int32_t AsSignedBits(float value) { return __builtin_bit_cast(int32_t, value); }

void FromBF16(const uint16_t* __restrict in, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = AsFloat(static_cast<uint32_t>(in[i]) << 16);
  }
}

void FromF16(const uint16_t* __restrict in, int64_t count, float* __restrict out) {
  constexpr uint32_t kExponent = 0x7c00u << 13;
  constexpr uint32_t kRebias = (127 - 15) << 23;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t half = in[i];
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    const uint32_t exponent = magnitude & kExponent;
    const uint32_t normal = magnitude + kRebias;
    const uint32_t special = normal + ((128 - 16) << 23);  // infinities and NaN
    // A subnormal is an integer times 2^-24: put it below 2^-14 and subtract that.
    const float shifted = AsFloat(normal + (1u << 23));
    const uint32_t subnormal = AsBits(shifted - AsFloat(113u << 23));
    uint32_t bits = exponent == kExponent ? special : normal;
    bits = exponent == 0 ? subnormal : bits;
    out[i] = AsFloat(bits | ((half & 0x8000u) << 16));
  }
}

void ToBF16(const float* __restrict in, int64_t count, uint16_t* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = AsBits(in[i]);
    out[i] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

void ToF16(const float* __restrict in, int64_t count, uint16_t* __restrict out) {
  constexpr int32_t kSmallestNormal = (127 - 14) << 23;  // 2^-14
  constexpr int32_t kRebias = (127 - 15) << 10;
  constexpr int32_t kInfinity = 0x7c00;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = AsSignedBits(in[i]);
    const int32_t magnitude = bits & 0x7fffffff;
    const int32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
    const int32_t unbounded = (rounded >> 13) - kRebias;
    const int32_t normal = unbounded < kInfinity ? unbounded : kInfinity;
    // Below the smallest normal halves count in steps of 2^-24, which is one unit in the last place
    // of 0.5: the addition rounds.
    const float sum = AsFloat(static_cast<uint32_t>(magnitude)) + 0.5f;
    const int32_t subnormal = AsSignedBits(sum) - AsSignedBits(0.5f);
    const int32_t half = magnitude < kSmallestNormal ? subnormal : normal;
    out[i] = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000));
  }
}

void FromE4M3(const uint8_t* __restrict in, int64_t count, float scale, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t code = in[i];
    const uint32_t magnitude = code & 0x7fu;
    // The code's exponent, where float32 has its own, is 120 too small; subnormals come right too.
    const float value = AsFloat(magnitude << 20) * 0x1p120f;
    const uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u : AsBits(value);
    out[i] = AsFloat(bits | ((code & 0x80u) << 24)) * scale;
  }
}

// Magnitudes compare like the integers of their bits, and NaN above all.
uint32_t MaxMagnitude(const float* in, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t magnitude = AsSignedBits(in[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<uint32_t>(largest);
}

uint16_t MaxMagnitude16(const uint16_t* in, int64_t count) {
  int16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int16_t magnitude = static_cast<int16_t>(in[i] & 0x7fff);
    largest = magnitude > largest ? magnitude : largest;
  }
  return static_cast<uint16_t>(largest);
}

void ToE4M3(const float* __restrict in, int64_t count, float scale, uint8_t* __restrict out) {
  constexpr int32_t kSmallestNormal = (127 - 6) << 23;  // 2^-6
  constexpr int32_t kRebias = (127 - 7) << 3;
  constexpr int32_t kLargest = 0x7e;  // 448
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = AsSignedBits(in[i] / scale);
    const int32_t magnitude = bits & 0x7fffffff;
    // Three mantissa bits, rounded to nearest even; a carry goes into the exponent where it
    // belongs.
    const int32_t rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);
    const int32_t unbounded = (rounded >> 20) - kRebias;
    const int32_t normal = unbounded < kLargest ? unbounded : kLargest;
    // Below the smallest normal codes count in steps of 2^-9, which is one unit in the last place
    // of 2^14: the addition rounds.
    const float sum = AsFloat(static_cast<uint32_t>(magnitude)) + 16384.0f;
    const int32_t subnormal = AsSignedBits(sum) - AsSignedBits(16384.0f);
    const int32_t code = magnitude < kSmallestNormal ? subnormal : normal;
    out[i] = static_cast<uint8_t>(code | ((bits >> 24) & 0x80));
  }
}

// A counter through a mixing function whose every output bit depends on every input bit.
inline uint32_t Mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x ^= x >> 15;
  x *= 0x735a2d97u;
  x ^= x >> 15;
  return x;
}

void Random(uint64_t key, int64_t count, float limit, float* __restrict out) {
  const uint32_t low = static_cast<uint32_t>(key);
  const uint32_t high = static_cast<uint32_t>(key >> 32) | 1u;
  const float scale = limit * 0x1p-31f;
  const uint32_t columns = static_cast<uint32_t>(count);
  for (uint32_t i = 0; i < columns; ++i) {
    const int32_t number = static_cast<int32_t>(Mix(low + i * high));
    const uint32_t bits = AsBits(static_cast<float>(number) * scale);
    out[i] = AsFloat(bits & 0xffff0000u);
  }
}

}  // namespace

extern const RowKernels kRowKernels;
const RowKernels kRowKernels = {MARCORO_ISA_NAME, FromBF16,       FromF16, FromE4M3, ToBF16, ToF16,
                                MaxMagnitude,     MaxMagnitude16, ToE4M3,  Random};

}  // namespace MARCORO_ISA
}  // namespace marcoro
