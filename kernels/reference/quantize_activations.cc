#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/element.h"
#include "kernels/reference/ops.h"

namespace marcoro::reference {
namespace {

constexpr float kLargestCode = 448.0f;
constexpr int kLeastExponent = -6;  // of normal numbers; below it codes are 2^-9 apart
constexpr int kMantissaBits = 3;

// The code nearest to a finite value, the even one of two; beyond the largest, that.
uint8_t ToE4M3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  const int exponent =
      std::max(magnitude == 0 ? kLeastExponent : std::ilogb(magnitude), kLeastExponent);
  // In units of the last place: below 8 subnormal. 16 carries into the exponent.
  const auto units =
      static_cast<int>(std::nearbyint(std::ldexp(magnitude, kMantissaBits - exponent)));
  const int code = (exponent - kLeastExponent) * (1 << kMantissaBits) + units;
  return static_cast<uint8_t>(sign | std::min(code, 0x7e));
}

float ScaleOf(const float* x, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, std::fabs(x[i]));
  }
  return largest == 0 ? 1.0f : largest / kLargestCode;
}

}  // namespace

void QuantizeActivations(const Tensor& x, const QuantizedActivations& out) {
  const int64_t segments = out.scales.columns;
  const int64_t columns = x.columns / segments;
  for (int64_t t = 0; t < x.rows; ++t) {
    const std::vector<float> row = RowToFloats(x, t);
    for (int64_t s = 0; s < segments; ++s) {
      const float scale = ScaleOf(&row[s * columns], columns);
      out.scales.Row<float>(t)[s] = scale;
      for (int64_t i = s * columns; i < (s + 1) * columns; ++i) {
        out.codes.Row<uint8_t>(t)[i] = std::isnan(scale) ? 0 : ToE4M3(row[i] / scale);
      }
    }
  }
}

}  // namespace marcoro::reference
