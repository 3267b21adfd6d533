// What tests of SwiGLU compare with.
#pragma once

#include <cmath>
#include <cstdint>

#include "tests/kernels/matrix.h"

namespace marcoro {

// silu(gate) * up in double, rounded to float.
inline Matrix ExpectedSwiGlu(const Matrix& gate_up) {
  const int64_t width = gate_up.columns() / 2;
  Matrix result(DType::kF32, gate_up.rows(), width);
  for (int64_t t = 0; t < gate_up.rows(); ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const double gate = gate_up.At(t, i);
      const double up = gate_up.At(t, width + i);
      result.Set(t, i, static_cast<float>(gate / (1 + std::exp(-gate)) * up));
    }
  }
  return result;
}

}  // namespace marcoro
