// Single elements of a matrix as float, whatever it is stored in.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"

namespace marcoro::reference {

// E4M3FN: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7f and 0xff are NaN.
float E4M3ToFloat(uint8_t code);
// The code whose number is nearest, of two as near the one with an even mantissa; ±448 beyond that.
// `value` is not NaN.
uint8_t FloatToE4M3(float value);

// Elements [0, count) of the array at data.
std::vector<float> ToFloats(const void* data, DType dtype, int64_t count);

// The given row of a matrix.
std::vector<float> RowToFloats(const Tensor& tensor, int64_t row);

// Writes F32 as it is and BF16 rounded to nearest even.
void Store(float value, DType dtype, void* data, int64_t index);

}  // namespace marcoro::reference
