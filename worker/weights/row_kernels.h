// The inner loops of loading, over elements of rows. Each is compiled once per instruction set from
// row_kernels-inl.h; all variants give the same bits.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/tensor.h"

namespace marcoro {

struct RowKernels {
  std::string_view name;  // "portable", "avx2", "avx512"

  // Exact, NaN and infinities included.
  void (*from_bf16)(const uint16_t* in, int64_t count, float* out);
  void (*from_f16)(const uint16_t* in, int64_t count, float* out);

  // out = E4M3FN code (exact, 0x7f and 0xff are NaN) * scale, one float32 product each.
  void (*from_e4m3)(const uint8_t* in, int64_t count, float scale, float* out);

  // Rounded to nearest even. Every value is finite.
  void (*to_bf16)(const float* in, int64_t count, uint16_t* out);
  void (*to_f16)(const float* in, int64_t count, uint16_t* out);

  // The largest |value| as float bits; at least 0x7f800000 if and only if a value is not finite.
  uint32_t (*max_magnitude)(const float* in, int64_t count);

  // The largest |value| of numbers in a 16-bit type, as its bits: at least 0x7f80 of BF16, or
  // 0x7c00 of F16, if and only if a value is not finite.
  uint16_t (*max_magnitude_16)(const uint16_t* in, int64_t count);

  // out = E4M3FN(in / scale): a float32 division, then rounding to nearest even, saturating at
  // ±448. Every value is finite, scale > 0.
  void (*to_e4m3)(const float* in, int64_t count, float scale, uint8_t* out);

  // out[i] = a number that depends on key and i only, uniform over [-limit, limit) and cut to the 8
  // leading mantissa bits of BF16.
  void (*random)(uint64_t key, int64_t count, float limit, float* out);
};

// The best variant this processor runs.
const RowKernels& GetRowKernels();

// The variant of that name; null if there is none or this processor cannot run it. For tests.
const RowKernels* FindRowKernels(std::string_view name);

}  // namespace marcoro
