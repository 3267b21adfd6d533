// Row-wise FP8 quantization as the numerics contract defines it: scale = max|row| / 448 in float32
// (1 for a row of zeros), code = E4M3FN(weight / scale) with a float32 division rounded to nearest
// even, then rounding to nearest even to E4M3FN, saturating at ±448. A weight is code times scale.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace marcoro {

// Largest finite magnitude of E4M3FN.
inline constexpr float kE4M3Max = 448.0f;

// The scale of a row of `count` numbers. False (and no scale) if one of them is not finite.
bool RowScale(const float* row, int64_t count, float* scale);

// The same for a scale that is stored as `dtype` (kBF16, kF16 or kF32): rounded to nearest, but up
// where the row's largest number would otherwise lie beyond what rounds to ±448 (scales that are
// subnormal in their type). `dtype` is the type that the row is stored in, so that the scale fits.
bool RowScaleIn(DType dtype, const float* row, int64_t count, float* scale);

// codes (count) of numbers (count) of a row with that scale.
void QuantizeRow(const float* row, int64_t count, float scale, uint8_t* codes);

// Whether all numbers are finite.
bool AllFinite(const float* numbers, int64_t count);

// Numbers rounded to nearest even. False if one of them is not finite, or would not be after
// rounding.
bool RoundToBFloat16(const float* numbers, int64_t count, BFloat16* out);

bool RoundToFloat16(const float* numbers, int64_t count, uint16_t* out);

}  // namespace marcoro
