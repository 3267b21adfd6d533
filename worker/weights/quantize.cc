#include "worker/weights/quantize.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kRoundsToInfinityBits = 0x7f7f8000u;  // the least float that does in BF16

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

}  // namespace marcoro
