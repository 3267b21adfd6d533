// The inner loops of merging, over elements of a tensor. Each is compiled once per instruction set
// from merge_kernels-inl.h; all variants give the same bits.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/tensor.h"

namespace marcoro {

// Elements that a loop of several kernels takes at a time, so that what goes from one to the next
// stays in the nearest cache.
inline constexpr int64_t kMergeBlock = 1024;

// Which elements of a tensor a sparse merge keeps, by magnitude: those above a threshold, and of
// those equal to it the ones before an index.
struct LargestElements {
  uint32_t threshold = 0;  // bits of a magnitude as float32
  int64_t equal_before = 0;
};

// Which elements a random mask keeps: each by a draw that depends on key and index only.
struct RandomElements {
  uint64_t key = 0;
  uint32_t limit = 0;  // kept where the draw, uniform over 32 bits, is below
};

// Kernels whose results are rounded to one type. Numbers are finite; what overflows is infinite.
struct RoundedMergeKernels {
  // values = rounded values
  void (*round)(float* values, int64_t count);
  // out = a·x + b·y, each product and the sum in float32, then rounded
  void (*combine)(float a, const float* x, float b, const float* y, int64_t count, float* out);
  // out = rounded x - y
  void (*subtract)(const float* x, const float* y, int64_t count, float* out);
  // out = rounded x + y
  void (*add)(const float* x, const float* y, int64_t count, float* out);
  // values = rounded factor·values
  void (*scale)(float factor, float* values, int64_t count);
  // values = rounded values / divisors
  void (*divide)(const float* divisors, float* values, int64_t count);
  // values = rounded values / divisor
  void (*divide_by)(float divisor, float* values, int64_t count);
};

struct MergeKernels {
  std::string_view name;  // "portable", "avx2", "avx512"

  RoundedMergeKernels bf16;
  RoundedMergeKernels f16;
  RoundedMergeKernels f32;

  // sums += {Σ x², Σ y², Σ x·y} in double, in one order of the elements.
  void (*products)(const float* x, const float* y, int64_t count, double* sums);
  // Σ |x| in double, in one order of the elements.
  double (*magnitudes)(const float* x, int64_t count);

  // sums += x
  void (*accumulate)(const float* x, int64_t count, float* sums);
  // sums += factor·x, with the product and the sum in double, as if they were rounded once: what
  // the fused operation gives that mergekit's library uses here
  void (*accumulate_product)(float factor, const float* x, int64_t count, float* sums);

  // Where x has the sign of `majority` (whose zeros count as positive; a zero x has none): sums +=
  // x and weights += weight.
  void (*accumulate_agreeing)(const float* x, const float* majority, float weight, int64_t count,
                              float* sums, float* weights);
  // values = 1 where they are 0
  void (*replace_zeros)(float* values, int64_t count);

  // Set to 0 what is not kept of values (count < 2^32), which are the tensor's from index `first`
  // on.
  void (*keep_largest)(const LargestElements& kept, int64_t first, int64_t count, float* values);
  void (*keep_random)(const RandomElements& kept, int64_t first, int64_t count, float* values);

  const RoundedMergeKernels& rounded(DType dtype) const {
    return dtype == DType::kBF16 ? bf16 : dtype == DType::kF16 ? f16 : f32;
  }
};

// The best variant this processor runs.
const MergeKernels& GetMergeKernels();

// The variant of that name; null if there is none or this processor cannot run it. For tests.
const MergeKernels* FindMergeKernels(std::string_view name);

}  // namespace marcoro
