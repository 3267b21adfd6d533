#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

constexpr float kLowest = -__builtin_inff();
constexpr int kSums = 4;
// Vectors whose exponentials are added in float before they enter the sum in double.
constexpr int kVectorsPerPartialSum = 16;

struct LargestLogit {
  float value;
  bool has_nan;
};

LargestLogit FindLargest(const float* logits, int64_t count) {
  Float largest[kSums] = {Set(kLowest), Set(kLowest), Set(kLowest), Set(kLowest)};
  uint32_t nan_bits = 0;
  int64_t i = 0;
  for (; i + kSums * kLanes <= count; i += kSums * kLanes) {
    MARCORO_UNROLL
    for (int s = 0; s < kSums; ++s) {
      const Float v = Load(logits + i + s * kLanes);
      nan_bits |= NanBits(v);
      largest[s] = Max(largest[s], v);
    }
  }
  for (; i < count; i += kLanes) {
    const int64_t rest = count - i;
    const Float v = rest >= kLanes ? Load(logits + i) : LoadFirst(logits + i, rest, kLowest);
    nan_bits |= NanBits(v);
    largest[0] = Max(largest[0], v);
  }
  const Float all = Max(Max(largest[0], largest[1]), Max(largest[2], largest[3]));
  return {Largest(all), nan_bits != 0};
}

// value is one of the logits.
int32_t FirstIndexOf(float value, const float* logits, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const uint32_t equal = EqualBits(Load(logits + i), Set(value));
    if (equal != 0) return static_cast<int32_t>(i) + __builtin_ctz(equal);
  }
  while (logits[i] != value) ++i;
  return static_cast<int32_t>(i);
}

double SumOfExp(const float* logits, int64_t count, float largest) {
  double total = 0;
  int64_t i = 0;
  while (i < count) {
    Float partial = Set(0);
    for (int v = 0; v < kVectorsPerPartialSum && i < count; ++v, i += kLanes) {
      const int64_t rest = count - i;
      const Float x = rest >= kLanes ? Load(logits + i) : LoadFirst(logits + i, rest, kLowest);
      partial = Add(partial, Exp(Sub(x, Set(largest))));
    }
    total += static_cast<double>(Sum(partial));
  }
  return total;
}

}  // namespace

RowSummary SummarizeRow(const float* logits, int64_t count) {
  const LargestLogit largest = FindLargest(logits, count);
  if (largest.has_nan) return {.best = 0, .has_nan = true, .exp_sum = 0};
  return {.best = FirstIndexOf(largest.value, logits, count),
          .has_nan = false,
          .exp_sum = SumOfExp(logits, count, largest.value)};
}

}  // namespace marcoro::cpu::MARCORO_ISA
