// Squares are added in four running sums over vectors, so that the order depends on the row's
// length only.

#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

constexpr int kSums = 4;

float SumOfSquares(const float* x, int64_t count) {
  Float sums[kSums] = {Set(0), Set(0), Set(0), Set(0)};
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
    MARCORO_UNROLL
    for (int s = 0; s < kSums; ++s) {
      const Float v = Load(x + i + s * kLanes);
      sums[s] = MulAdd(v, v, sums[s]);
    }
  }
  for (; i + kLanes <= count; i += kLanes) {
    const Float v = Load(x + i);
    sums[0] = MulAdd(v, v, sums[0]);
  }
  if (i < count) {
    const Float v = LoadFirst(x + i, count - i, 0);
    sums[1] = MulAdd(v, v, sums[1]);
  }
  return Sum(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

}  // namespace

void RmsNormRow(const float* x, const float* weight, float epsilon, int64_t count, BFloat16* out) {
  const float mean = SumOfSquares(x, count) / static_cast<float>(count);
  const Float scale = Div(Set(1), Sqrt(Set(mean + epsilon)));
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    StoreBf16(Mul(Mul(Load(x + i), scale), Load(weight + i)), out + i);
  }
  if (i < count) {
    const int64_t rest = count - i;
    const Float v = Mul(LoadFirst(x + i, rest, 0), scale);
    StoreFirstBf16(Mul(v, LoadFirst(weight + i, rest, 0)), rest, out + i);
  }
}

void AddRmsNormRow(float* residual, const float* delta, const float* weight, float epsilon,
                   int64_t count, BFloat16* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Store(Add(Load(residual + i), Load(delta + i)), residual + i);
  }
  for (; i < count; ++i) residual[i] += delta[i];
  RmsNormRow(residual, weight, epsilon, count, out);
}

}  // namespace marcoro::cpu::MARCORO_ISA
