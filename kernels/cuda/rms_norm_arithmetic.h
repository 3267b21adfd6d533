// The arithmetic of RmsNorm on a row that a block holds in vectors: shared by rms_norm.cu and the
// all-reduce that norms what it has summed, so that both give the same bits. Both have 256 threads,
// and thread t adds up elements [4 (t + 256 j), + 4) for j = 0, 1, ….
#pragma once

#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/reduce.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/vectors.h"

namespace marcoro::cuda {

MARCORO_DEVICE Float4 AddFour(const Float4& a, const Float4& b) {
  Float4 sum;
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) sum.value[i] = Add(a.value[i], b.value[i]);
  return sum;
}

MARCORO_DEVICE float AddSquares(const Float4& x, float sum) {
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) sum = MultiplyAdd(x.value[i], x.value[i], sum);
  return sum;
}

// The factor of a row's elements, from each thread's part of the sum of squares. `warp_sums` as for
// SumOverBlock.
MARCORO_DEVICE float RmsNormFactor(float sum, const SharedArray<float>& warp_sums, int columns,
                                   float epsilon) {
  const float mean = Divide(SumOverBlock(sum, warp_sums), static_cast<float>(columns));
  return Divide(1.0f, SquareRoot(Add(mean, epsilon)));
}

MARCORO_DEVICE Float4 ScaleFour(const Float4& x, float factor, const Float4& weight) {
  Float4 result;
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kVector; ++i) {
    result.value[i] = Multiply(Multiply(x.value[i], factor), weight.value[i]);
  }
  return result;
}

}  // namespace marcoro::cuda
