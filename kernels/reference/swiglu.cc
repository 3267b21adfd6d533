#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/ops.h"

namespace marcoro::reference {

void SwiGlu(const Tensor& gate_up, const Tensor& out) {
  for (int64_t t = 0; t < out.rows; ++t) {
    const float* gate = gate_up.Row<float>(t);
    const float* up = gate + out.columns;
    for (int64_t i = 0; i < out.columns; ++i) {
      const float silu = gate[i] / (1.0f + std::exp(-gate[i]));
      Store(silu * up[i], out.dtype, out.RowBytes(t), i);
    }
  }
}

}  // namespace marcoro::reference
