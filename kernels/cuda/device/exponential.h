// An exponential with the same bits on every machine.
#pragma once

#include "kernels/cuda/device/numbers.h"

namespace marcoro::cuda {

// e^x for x <= 0, within 1 unit in the last place; 0 for x < -87.
MARCORO_DEVICE float ExpOfNegative(float x) {
  constexpr float kLeast = -87.0f;
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693145752f;  // exact in 17 bits
  constexpr float kLn2Low = 1.42860677e-6f;
  constexpr float kRounder = 12582912.0f;  // 1.5 · 2^23: a sum with it is a whole number
  const float bounded = x < kLeast ? kLeast : x;
  const float n = Subtract(MultiplyAdd(bounded, kLog2E, kRounder), kRounder);
  const float r = MultiplyAdd(n, -kLn2Low, MultiplyAdd(n, -kLn2High, bounded));
  // Taylor's series for |r| <= ln(2) / 2: what is left out is less than 2^-27.
  float sum = 1.0f / 5040;
  sum = MultiplyAdd(sum, r, 1.0f / 720);
  sum = MultiplyAdd(sum, r, 1.0f / 120);
  sum = MultiplyAdd(sum, r, 1.0f / 24);
  sum = MultiplyAdd(sum, r, 1.0f / 6);
  sum = MultiplyAdd(sum, r, 0.5f);
  sum = MultiplyAdd(sum, r, 1.0f);
  sum = MultiplyAdd(sum, r, 1.0f);
  const float power = BitsToFloat(static_cast<uint32_t>(static_cast<int>(n) + 127) << 23);
  return x < kLeast ? 0.0f : Multiply(sum, power);
}

}  // namespace marcoro::cuda
