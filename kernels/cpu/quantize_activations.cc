// In integers, branch by branch for all elements, so that the compiler makes vectors of them.

#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

constexpr float kLargestCode = 448.0f;
constexpr uint32_t kInfinityBits = 0x7f80;  // of BF16

MARCORO_INLINE uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
MARCORO_INLINE float BitsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The code nearest to a finite value, the even one of two; beyond the largest, that.
MARCORO_INLINE uint32_t ToE4M3(float value) {
  const uint32_t bits = FloatBits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // The bias of the exponent is 7, not 127.
  const uint32_t normal = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  // Below 2^-6 codes are 2^-9 apart, as floats are from 2^14 on.
  constexpr float kSpacing = 16384.0f;
  const uint32_t subnormal = FloatBits(BitsFloat(magnitude) + kSpacing) - FloatBits(kSpacing);
  constexpr uint32_t kLeastNormal = 0x3c800000u;
  const uint32_t code = magnitude < kLeastNormal ? subnormal : normal;
  return (code < 0x7eu ? code : 0x7eu) | (bits >> 24 & 0x80u);
}

}  // namespace

float QuantizeSegment(const BFloat16* x, int64_t count, uint8_t* codes) {
  uint32_t largest = 0;  // magnitudes are ordered as their bits are
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = x[i].bits & 0x7fffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest >= kInfinityBits) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return BitsFloat(0x7fc00000u);
  }
  const float scale = largest == 0 ? 1.0f : BitsFloat(largest << 16) / kLargestCode;
  for (int64_t i = 0; i < count; ++i) {
    const float value = BitsFloat(static_cast<uint32_t>(x[i].bits) << 16);
    codes[i] = static_cast<uint8_t>(ToE4M3(value / scale));
  }
  return scale;
}

}  // namespace marcoro::cpu::MARCORO_ISA
