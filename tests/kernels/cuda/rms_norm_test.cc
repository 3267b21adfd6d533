#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace marcoro::cuda {
namespace {

constexpr float kEpsilon = 1e-5f;

// x / sqrt(mean(x²) + epsilon) * weight in double, rounded to float.
Matrix Expected(const Matrix& x, const Matrix& weight) {
  Matrix result(DType::kF32, x.rows(), x.columns());
  for (int64_t t = 0; t < x.rows(); ++t) {
    double sum = 0;
    for (int64_t i = 0; i < x.columns(); ++i) sum += double{x.At(t, i)} * x.At(t, i);
    const double scale = 1 / std::sqrt(sum / static_cast<double>(x.columns()) + kEpsilon);
    for (int64_t i = 0; i < x.columns(); ++i) {
      result.Set(t, i, static_cast<float>(x.At(t, i) * scale * weight.At(0, i)));
    }
  }
  return result;
}

Matrix Weight(int64_t columns) { return Matrix(DType::kF32, 1, columns).FillNormal(7); }

struct Result {
  Matrix x;
  Matrix out;
};

// `delta` may be null.
Result RunOp(const Matrix& x, const Matrix* delta, const Matrix& weight, int64_t out_padding = 0) {
  const DeviceMatrix device_x(x);
  const DeviceMatrix device_weight(weight);
  const DeviceMatrix out(Matrix(DType::kBF16, x.rows(), x.columns(), out_padding));
  if (delta == nullptr) {
    RmsNorm(TestStream(), device_x.view(), nullptr, device_weight.view().Row<float>(0), kEpsilon,
            out.view());
  } else {
    const DeviceMatrix device_delta(*delta);
    const Tensor view = device_delta.view();
    RmsNorm(TestStream(), device_x.view(), &view, device_weight.view().Row<float>(0), kEpsilon,
            out.view());
    CheckDevice(Synchronize(TestStream()));
  }
  return {device_x.ToHost(), out.ToHost()};
}

TEST(CudaRmsNormTest, IsTheFormulaRoundedOnce) {
  // Around the sizes at which rows are cut, and aligned and unaligned strides of each.
  for (const int64_t columns :
       {1, 3, 4, 7, 96, 1023, 1024, 1028, 4095, 4096, 4097, 8192, 8193, 8200, 12001}) {
    for (const int64_t padding : {0, 3, 4}) {
      SCOPED_TRACE(::testing::Message() << columns << " columns, padding " << padding);
      const Matrix x = Matrix(DType::kF32, 3, columns, padding).FillNormal(1, 4);
      const Result result = RunOp(x, nullptr, Weight(columns), padding);
      EXPECT_TRUE(Near(Expected(x, Weight(columns)), result.out, kBf16HalfUlp * 1.01f, 0));
      EXPECT_TRUE(BitwiseEqual(x, result.x));
      EXPECT_TRUE(result.out.PaddingIsIntact());
    }
  }
}

TEST(CudaRmsNormTest, AddsTheDeltaFirst) {
  for (const int64_t columns : {1, 17, 4096, 8192, 9001}) {
    SCOPED_TRACE(columns);
    const Matrix x = Matrix(DType::kF32, 2, columns, 1).FillNormal(1);
    const Matrix delta = Matrix(DType::kF32, 2, columns, 2).FillNormal(2);
    Matrix sum(DType::kF32, 2, columns);
    for (int64_t t = 0; t < 2; ++t) {
      for (int64_t i = 0; i < columns; ++i) sum.Set(t, i, x.At(t, i) + delta.At(t, i));
    }
    const Result result = RunOp(x, &delta, Weight(columns));
    EXPECT_TRUE(BitwiseEqual(sum, result.x));
    EXPECT_TRUE(result.x.PaddingIsIntact());
    EXPECT_TRUE(Near(Expected(sum, Weight(columns)), result.out, kBf16HalfUlp * 1.01f, 0));
  }
}

TEST(CudaRmsNormTest, TheBitsDependNeitherOnCompanyNorOnAlignmentNorOnTheOrderOfThreads) {
  for (const int64_t columns : {301, 4096, 8200}) {
    SCOPED_TRACE(columns);
    const Matrix x = Matrix(DType::kF32, 5, columns).FillNormal(1);
    Matrix unaligned(DType::kF32, 5, columns, 1);
    for (int64_t t = 0; t < 5; ++t) unaligned.CopyRow(t, x, t);
    const Matrix expected = RunOp(x, nullptr, Weight(columns)).out;
    InSeveralThreadOrders([&] {
      EXPECT_TRUE(BitwiseEqual(expected, RunOp(x, nullptr, Weight(columns)).out));
      EXPECT_TRUE(BitwiseEqual(expected, RunOp(unaligned, nullptr, Weight(columns)).out));
    });
    for (int64_t t = 0; t < 5; ++t) {
      Matrix alone(DType::kF32, 1, columns);
      alone.CopyRow(0, x, t);
      Matrix row(DType::kBF16, 1, columns);
      row.CopyRow(0, expected, t);
      EXPECT_TRUE(BitwiseEqual(row, RunOp(alone, nullptr, Weight(columns)).out)) << "row " << t;
    }
  }
}

TEST(CudaRmsNormTest, NanStaysInItsRow) {
  Matrix x = Matrix(DType::kF32, 3, 40).FillNormal(1);
  const Matrix clean = RunOp(x, nullptr, Weight(40)).out;
  x.Set(1, 39, NAN);
  const Matrix out = RunOp(x, nullptr, Weight(40)).out;
  for (int64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(out.At(0, i), clean.At(0, i));
    EXPECT_TRUE(std::isnan(out.At(1, i)));
    EXPECT_EQ(out.At(2, i), clean.At(2, i));
  }
}

}  // namespace
}  // namespace marcoro::cuda
