// The arithmetic of QuantizeActivations on a segment that a block holds in vectors: shared by
// quantize_activations.cu and the norm that quantizes what it has scaled, so that both give the
// same bits.
#pragma once

#include "kernels/cuda/device/e4m3.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"

namespace marcoro::cuda {

// The largest magnitude of the first `left` elements and of `bits`, which is such a one. Magnitudes
// are ordered as their bits are, NaN and infinity last.
MARCORO_DEVICE uint32_t LargestMagnitude(uint32_t bits, const Float4& four, int left) {
  MARCORO_UNROLL_LOOP
  for (int e = 0; e < kVector; ++e) {
    const uint32_t magnitude = FloatToBits(four.value[e]) & 0x7fffffffu;
    if (e < left && magnitude > bits) bits = magnitude;
  }
  return bits;
}

// The largest number that any thread of the block passed. `warps` has an element for each warp and
// is free again after the next barrier.
MARCORO_DEVICE uint32_t MaxOverBlock(uint32_t value, const SharedArray<uint32_t>& warps) {
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    const uint32_t other = ShuffleXor(value, mask);
    value = other > value ? other : value;
  }
  if (Lane() == 0) warps.Store(Warp(), value);
  SyncBlock();
  for (int warp = 0; warp < BlockThreads() / kWarpThreads; ++warp) {
    const uint32_t other = warps.Load(warp);
    value = other > value ? other : value;
  }
  return value;
}

// What a segment's codes are multiplied by, from the bits of its largest magnitude: NaN where that
// is not finite.
MARCORO_DEVICE float CodeScale(uint32_t largest) {
  constexpr float kLargestCode = 448.0f;
  constexpr uint32_t kInfinityBits = 0x7f800000u;
  if (largest >= kInfinityBits) return BitsToFloat(0x7fc00000u);
  return largest == 0 ? 1.0f : Divide(BitsToFloat(largest), kLargestCode);
}

// Stores the codes of the first `left` elements; zeros if the scale is NaN.
MARCORO_DEVICE void StoreFourCodes(uint8_t* to, const Float4& four, float scale, int left,
                                   bool aligned) {
  uint32_t word = 0;
  if (!IsNan(scale)) {
    MARCORO_UNROLL_LOOP
    for (int e = 0; e < kVector; ++e) {
      word |= EncodeE4M3(Divide(four.value[e], scale)) << (e * 8);
    }
  }
  if (aligned && left >= kVector) {
    *reinterpret_cast<uint32_t*>(to) = word;
    return;
  }
  MARCORO_UNROLL_LOOP
  for (int e = 0; e < kVector; ++e) {
    if (e < left) to[e] = static_cast<uint8_t>(word >> (e * 8) & 0xffu);
  }
}

}  // namespace marcoro::cuda
