#include "worker/collective/tree_sum.h"

#include "kernels/check.h"

namespace marcoro {
namespace {

// Elements summed at once: enough for the compiler to keep whole vectors in registers. All of a
// block is loaded before any of it is stored, so that the output may be one of the inputs.
constexpr size_t kBlock = 16;

template <int kInputs, size_t kCount>
inline void SumBlock(const float* const* inputs, size_t offset, float* sum) {
  if constexpr (kInputs == 1) {
    for (size_t i = 0; i < kCount; ++i) sum[i] = inputs[0][offset + i];
  } else {
    float right[kCount];
    SumBlock<kInputs / 2, kCount>(inputs, offset, sum);
    SumBlock<kInputs / 2, kCount>(inputs + kInputs / 2, offset, right);
    for (size_t i = 0; i < kCount; ++i) sum[i] += right[i];
  }
}

template <int kInputs>
void Sum(const float* const* inputs, size_t count, float* output) {
  size_t offset = 0;
  for (; offset + kBlock <= count; offset += kBlock) {
    float sum[kBlock];
    SumBlock<kInputs, kBlock>(inputs, offset, sum);
    for (size_t i = 0; i < kBlock; ++i) output[offset + i] = sum[i];
  }
  for (; offset < count; ++offset) {
    float sum[1];
    SumBlock<kInputs, 1>(inputs, offset, sum);
    output[offset] = sum[0];
  }
}

}  // namespace

void TreeSum(absl::Span<const float* const> inputs, size_t count, float* output) {
  switch (inputs.size()) {
    case 1:
      return Sum<1>(inputs.data(), count, output);
    case 2:
      return Sum<2>(inputs.data(), count, output);
    case 4:
      return Sum<4>(inputs.data(), count, output);
    case 8:
      return Sum<8>(inputs.data(), count, output);
  }
  MARCORO_CHECK(false && "a balanced tree needs 1, 2, 4 or 8 inputs");
}

}  // namespace marcoro
