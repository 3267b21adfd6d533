#include "worker/weights/quantize.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/check.h"
#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kRoundsToInfinityBits = 0x7f7f8000u;  // the least float that does in BF16

constexpr uint32_t kRoundsToInfinityBitsF16 = 0x477ff000u;  // 65520
constexpr float kRoundsTo448 = 464.0f;  // the largest float that does, halfway to the next code

// The number of that bit pattern in a 16-bit type.
float FromBits(DType dtype, uint16_t bits) {
  float value = 0;
  const RowKernels& kernels = GetRowKernels();
  (dtype == DType::kBF16 ? kernels.from_bf16 : kernels.from_f16)(&bits, 1, &value);
  return value;
}

}  // namespace

bool RowScale(const float* row, int64_t count, float* scale) {
  const uint32_t bits = GetRowKernels().max_magnitude(row, count);
  if (bits >= kInfinityBits) return false;
  // The smallest float keeps the scale of a row of almost-zeros from becoming zero.
  *scale = bits == 0 ? 1.0f
                     : std::max(std::bit_cast<float>(bits) / kE4M3Max,
                                std::numeric_limits<float>::denorm_min());
  return true;
}

bool RowScaleIn(DType dtype, const float* row, int64_t count, float* scale) {
  float exact = 0;
  if (!RowScale(row, count, &exact)) return false;
  *scale = exact;
  if (dtype == DType::kF32) return true;
  MARCORO_CHECK(dtype == DType::kBF16 || dtype == DType::kF16);
  const RowKernels& kernels = GetRowKernels();
  uint16_t bits = 0;
  (dtype == DType::kBF16 ? kernels.to_bf16 : kernels.to_f16)(&exact, 1, &bits);
  const float largest = std::bit_cast<float>(kernels.max_magnitude(row, count));
  if (largest > FromBits(dtype, bits) * kRoundsTo448) ++bits;
  *scale = FromBits(dtype, bits);
  return true;
}

void QuantizeRow(const float* row, int64_t count, float scale, uint8_t* codes) {
  GetRowKernels().to_e4m3(row, count, scale, codes);
}

bool AllFinite(const float* numbers, int64_t count) {
  return GetRowKernels().max_magnitude(numbers, count) < kInfinityBits;
}

bool RoundToBFloat16(const float* numbers, int64_t count, BFloat16* out) {
  static_assert(sizeof(BFloat16) == sizeof(uint16_t));
  const RowKernels& kernels = GetRowKernels();
  if (kernels.max_magnitude(numbers, count) >= kRoundsToInfinityBits) return false;
  kernels.to_bf16(numbers, count, &out->bits);
  return true;
}

bool RoundToFloat16(const float* numbers, int64_t count, uint16_t* out) {
  const RowKernels& kernels = GetRowKernels();
  if (kernels.max_magnitude(numbers, count) >= kRoundsToInfinityBitsF16) return false;
  kernels.to_f16(numbers, count, out);
  return true;
}

}  // namespace marcoro
