// Number formats and non-owning views: the vocabulary that kernels, collectives and the model
// share.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace marcoro {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF16,
  kF8E4M3,  // OCP E4M3FN: no infinities, 0x7f and 0xff are NaN, largest finite 448
};

// Bytes of one element.
constexpr size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kF8E4M3:
      return 1;
  }
  return 0;
}

// How keys and values are cached.
enum class KvFormat : uint8_t {
  kActivation,  // as the backend's activation type
  kFp8,         // as E4M3FN codes with a scale for each key and value (kernels/backend.h)
};

// The upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

inline float ToFloat(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to nearest even; every NaN stays a (quiet) NaN.
inline BFloat16 ToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<uint16_t>((bits >> 16) | 0x0040u)};
  }
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>(rounded >> 16)};
}

// A row-major matrix in memory that somebody else owns. Rows may be further apart than they are
// long.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;  // elements from one row to the next, >= columns

  Tensor() = default;
  Tensor(void* data_in, DType dtype_in, int64_t rows_in, int64_t columns_in)
      : data(data_in), dtype(dtype_in), rows(rows_in), columns(columns_in), stride(columns_in) {}

  template <typename T>
  T* Row(int64_t row) const {
    return static_cast<T*>(data) + row * stride;
  }
  void* RowBytes(int64_t row) const {
    return static_cast<char*>(data) + static_cast<size_t>(row * stride) * SizeOf(dtype);
  }
  // The given rows of this matrix.
  Tensor Rows(int64_t begin, int64_t count) const {
    Tensor result = *this;
    result.data = RowBytes(begin);
    result.rows = count;
    return result;
  }
};

}  // namespace marcoro
