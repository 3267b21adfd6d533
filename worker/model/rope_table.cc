#include "worker/model/rope_table.h"

#include <cmath>

namespace marcoro {

std::vector<float> MakeRopeTable(int32_t positions, int32_t head_dim, float theta) {
  const int32_t half = head_dim / 2;
  std::vector<float> inverse_frequency(half);
  for (int32_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    inverse_frequency[i] = 1.0f / std::pow(theta, exponent);
  }
  std::vector<float> table(static_cast<size_t>(positions) * head_dim);
  for (int32_t position = 0; position < positions; ++position) {
    float* row = table.data() + static_cast<size_t>(position) * head_dim;
    for (int32_t i = 0; i < half; ++i) {
      const double angle = inverse_frequency[i] * static_cast<float>(position);
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace marcoro
