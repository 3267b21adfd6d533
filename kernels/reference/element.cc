#include "kernels/reference/element.h"

#include <cmath>
#include <limits>

#include "kernels/check.h"

namespace marcoro::reference {
namespace {

float Load(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kBF16:
      return ToFloat(static_cast<const BFloat16*>(data)[index]);
    case DType::kF8E4M3:
      return E4M3ToFloat(static_cast<const uint8_t*>(data)[index]);
    case DType::kF16:
      break;  // no op takes it
  }
  MARCORO_CHECK(false);
}

}  // namespace

float E4M3ToFloat(uint8_t code) {
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = (code >> 3) & 0xf;
  const int mantissa = code & 0x7;
  if (exponent == 0xf && mantissa == 0x7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -9);
  return sign * std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
}

uint8_t FloatToE4M3(float value) {
  constexpr uint8_t kLargest = 0x7e;
  const float magnitude = std::abs(value);
  // The largest code whose number is not above: numbers grow with the code.
  uint8_t code = 0;
  for (uint8_t step = 64; step > 0; step /= 2) {
    if (code + step <= kLargest && E4M3ToFloat(code + step) <= magnitude) code += step;
  }
  if (code < kLargest) {
    // Exact: neighbours and what lies between them differ in few bits.
    const float above = E4M3ToFloat(code + 1) - magnitude;
    const float below = magnitude - E4M3ToFloat(code);
    if (above < below || (above == below && code % 2 == 1)) ++code;
  }
  return std::signbit(value) ? code | 0x80 : code;
}

std::vector<float> ToFloats(const void* data, DType dtype, int64_t count) {
  std::vector<float> result(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) result[i] = Load(data, dtype, i);
  return result;
}

std::vector<float> RowToFloats(const Tensor& tensor, int64_t row) {
  return ToFloats(tensor.RowBytes(row), tensor.dtype, tensor.columns);
}

void Store(float value, DType dtype, void* data, int64_t index) {
  MARCORO_CHECK(dtype == DType::kF32 || dtype == DType::kBF16);
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<BFloat16*>(data)[index] = ToBFloat16(value);
  }
}

}  // namespace marcoro::reference
