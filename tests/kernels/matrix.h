// Matrices for op tests. Memory starts as NaN everywhere, padding between rows included, so that a
// read of something that was never written shows in the result.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/tensor.h"
#include "tests/kernels/random_seed.h"

namespace marcoro {

class Matrix {
 public:
  Matrix(DType dtype, int64_t rows, int64_t columns, int64_t padding = 0)
      : bytes_(static_cast<size_t>(rows * (columns + padding)) * SizeOf(dtype), 0xff) {
    view_ = Tensor(nullptr, dtype, rows, columns);
    view_.stride = columns + padding;
  }

  Tensor view() const {
    Tensor result = view_;
    result.data = const_cast<uint8_t*>(bytes_.data());
    return result;
  }
  int64_t rows() const { return view_.rows; }
  int64_t columns() const { return view_.columns; }

  float At(int64_t row, int64_t column) const {
    if (view_.dtype == DType::kBF16) return ToFloat(view().Row<BFloat16>(row)[column]);
    return view().Row<float>(row)[column];
  }
  void Set(int64_t row, int64_t column, float value) {
    if (view_.dtype == DType::kBF16) {
      view().Row<BFloat16>(row)[column] = ToBFloat16(value);
    } else {
      view().Row<float>(row)[column] = value;
    }
  }

  // Values from a normal distribution.
  Matrix& FillNormal(uint32_t seed, float deviation = 1) {
    std::mt19937 random(RandomSeed(seed));
    std::normal_distribution<float> normal(0, deviation);
    for (int64_t r = 0; r < rows(); ++r) {
      for (int64_t c = 0; c < columns(); ++c) Set(r, c, normal(random));
    }
    return *this;
  }
  void FillRow(int64_t row, float value) {
    for (int64_t c = 0; c < columns(); ++c) Set(row, c, value);
  }
  void CopyRow(int64_t row, const Matrix& from, int64_t from_row) {
    std::memcpy(view().RowBytes(row), from.view().RowBytes(from_row),
                static_cast<size_t>(columns()) * SizeOf(view_.dtype));
  }

  // Whether what lies between the rows is still as it was made.
  bool PaddingIsIntact() const {
    const size_t used = static_cast<size_t>(view_.columns) * SizeOf(view_.dtype);
    const size_t stride = static_cast<size_t>(view_.stride) * SizeOf(view_.dtype);
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if (i % stride >= used && bytes_[i] != 0xff) return false;
    }
    return true;
  }

 private:
  std::vector<uint8_t> bytes_;
  Tensor view_;
};

}  // namespace marcoro
