#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/ops.h"

namespace marcoro::reference {

void RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out) {
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* row = x.Row<float>(t);
    float sum = 0;
    for (int64_t i = 0; i < x.columns; ++i) sum += row[i] * row[i];
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(x.columns) + epsilon);
    for (int64_t i = 0; i < x.columns; ++i) {
      Store(row[i] * scale * weight[i], out.dtype, out.RowBytes(t), i);
    }
  }
}

void AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight, float epsilon,
                const Tensor& out) {
  for (int64_t t = 0; t < residual.rows; ++t) {
    for (int64_t i = 0; i < residual.columns; ++i) {
      residual.Row<float>(t)[i] += delta.Row<float>(t)[i];
    }
  }
  RmsNorm(residual, weight, epsilon, out);
}

}  // namespace marcoro::reference
