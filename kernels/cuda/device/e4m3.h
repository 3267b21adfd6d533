// E4M3FN codes as the KV cache has them: none is NaN.
#pragma once

#include "kernels/cuda/device/numbers.h"

namespace marcoro::cuda {

// Four codes in a word as two pairs of BF16, exactly: `even` of bytes 0 and 2, `odd` of bytes 1 and
// 3. A code's exponent and mantissa, put where BF16 has them, are its number times 2^-120,
// subnormals included.
MARCORO_DEVICE void DecodeCodes(uint32_t codes, uint32_t& even, uint32_t& odd) {
  constexpr uint32_t kMagnitudes = 0x07f007f0u;
  constexpr uint32_t kSigns = 0x80008000u;
  constexpr uint32_t kTwoTo120Twice = 0x7b807b80u;
  even = MultiplyBf16Pair((codes << 4 & kMagnitudes) | (codes << 8 & kSigns), kTwoTo120Twice);
  odd = MultiplyBf16Pair((codes >> 4 & kMagnitudes) | (codes & kSigns), kTwoTo120Twice);
}

// The nearest code, the even one of two as near; ±448 beyond that. `value` is not NaN.
MARCORO_DEVICE uint32_t EncodeE4M3(float value) {
  constexpr uint32_t kSmallestNormal = (127 - 6) << 23;  // 2^-6
  constexpr uint32_t kRebias = (127 - 7) << 3;
  constexpr uint32_t kLargest = 0x7e;
  const uint32_t bits = FloatToBits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 24 & 0x80u;
  // Below the smallest normal number codes count in steps of 2^-9, which is one unit in the last
  // place of 2^14: the addition rounds.
  if (magnitude < kSmallestNormal) {
    return sign | (FloatToBits(Add(BitsToFloat(magnitude), 16384.0f)) - FloatToBits(16384.0f));
  }
  // Three bits of the mantissa are left; a carry goes into the exponent, where it belongs.
  const uint32_t code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - kRebias;
  return sign | (code < kLargest ? code : kLargest);
}

}  // namespace marcoro::cuda
