// Four neighbouring elements at a time, in one access where memory is aligned for that. What is
// beyond the end of a row is neither read nor written. Which elements a thread takes must not
// depend on the alignment: then neither do the bits.
#pragma once

#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

inline constexpr int kVector = 4;

// Whether every row of a matrix begins at a multiple of kVector elements' bytes.
inline bool RowsAreAligned(const void* data, int64_t stride, size_t element_bytes) {
  return reinterpret_cast<uintptr_t>(data) % (kVector * element_bytes) == 0 &&
         stride % kVector == 0;
}

// `left`: elements from `from` to the end of the row. Zeros beyond it.
MARCORO_DEVICE Float4 LoadFour(const float* from, int left, bool aligned) {
  if (aligned && left >= kVector) return *reinterpret_cast<const Float4*>(from);
  Float4 result;
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) result.value[i] = i < left ? from[i] : 0.0f;
  return result;
}

MARCORO_DEVICE void StoreFour(float* to, const Float4& four, int left, bool aligned) {
  if (aligned && left >= kVector) {
    *reinterpret_cast<Float4*>(to) = four;
    return;
  }
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) {
    if (i < left) to[i] = four.value[i];
  }
}

// BF16 elements. Zeros beyond the end.
MARCORO_DEVICE Float4 LoadFourBf16(const uint16_t* from, int left, bool aligned) {
  if (aligned && left >= kVector) {
    const Words2 pairs = *reinterpret_cast<const Words2*>(from);
    return {{LowBf16(pairs.word[0]), HighBf16(pairs.word[0]), LowBf16(pairs.word[1]),
             HighBf16(pairs.word[1])}};
  }
  Float4 result;
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) result.value[i] = i < left ? Bf16ToFloat(from[i]) : 0.0f;
  return result;
}

// Rounds to BF16.
MARCORO_DEVICE void StoreFourBf16(uint16_t* to, const Float4& four, int left, bool aligned) {
  if (aligned && left >= kVector) {
    *reinterpret_cast<Words2*>(to) = {
        {PackBf16(four.value[0], four.value[1]), PackBf16(four.value[2], four.value[3])}};
    return;
  }
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) {
    if (i < left) to[i] = RoundBf16(four.value[i]);
  }
}

}  // namespace marcoro::cuda
