// Packing is a copy: row-major, as the checkpoint has it.

#include <cstring>
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/ops.h"

namespace marcoro::reference {
namespace {

// ((0+1)+(2+3))+…
float SumTree(const std::vector<float>& values, size_t begin, size_t count) {
  if (count == 1) return values[begin];
  return SumTree(values, begin, count / 2) + SumTree(values, begin + count / 2, count / 2);
}

float Dot(const float* a, const float* b, int64_t count) {
  float sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += a[k] * b[k];
  return sum;
}

}  // namespace

size_t WeightBytes(const WeightShape& shape) {
  return static_cast<size_t>(shape.rows * shape.columns) * SizeOf(shape.dtype);
}

void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count, const void* source) {
  const size_t row_bytes = static_cast<size_t>(weight.shape.columns) * SizeOf(weight.shape.dtype);
  std::memcpy(static_cast<char*>(weight.data) + static_cast<size_t>(first_row) * row_bytes, source,
              static_cast<size_t>(count) * row_bytes);
}

namespace {

// token_scales (T, segments), or null.
void Multiply(const Tensor& x, const Tensor* token_scales, const PackedWeight& weight,
              const Tensor& out) {
  const WeightShape& shape = weight.shape;
  const Tensor matrix(weight.data, shape.dtype, shape.rows, shape.columns);
  const int64_t segment_columns = shape.columns / shape.segments;

  std::vector<std::vector<float>> inputs;
  for (int64_t t = 0; t < x.rows; ++t) inputs.push_back(RowToFloats(x, t));

  std::vector<float> segments(static_cast<size_t>(shape.segments));
  for (int64_t n = 0; n < shape.rows; ++n) {
    const std::vector<float> row = RowToFloats(matrix, n);
    const float scale = weight.scales != nullptr ? weight.scales[n] : 1.0f;
    for (int64_t t = 0; t < x.rows; ++t) {
      for (int s = 0; s < shape.segments; ++s) {
        const int64_t begin = s * segment_columns;
        segments[s] = scale * Dot(&inputs[t][begin], &row[begin], segment_columns);
        if (token_scales != nullptr) segments[s] *= token_scales->Row<float>(t)[s];
      }
      out.Row<float>(t)[n] = SumTree(segments, 0, segments.size());
    }
  }
}

}  // namespace

void Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out) {
  Multiply(x, nullptr, weight, out);
}

void MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                       const Tensor& out) {
  Multiply(x.codes, &x.scales, weight, out);
}

}  // namespace marcoro::reference
