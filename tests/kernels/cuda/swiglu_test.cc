#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/swiglu_formula.h"

namespace marcoro::cuda {
namespace {

Matrix RunOp(const Matrix& gate_up, int64_t out_padding) {
  const DeviceMatrix device(gate_up);
  const DeviceMatrix out(Matrix(DType::kBF16, gate_up.rows(), gate_up.columns() / 2, out_padding));
  SwiGlu(TestStream(), device.view(), out.view());
  return out.ToHost();
}

TEST(CudaSwiGluTest, IsTheFormulaRoundedOnce) {
  for (const int64_t width : {1, 3, 4, 5, 1023, 1024, 1026, 2049, 14336}) {
    for (const int64_t padding : {0, 3, 4}) {
      SCOPED_TRACE(::testing::Message() << width << " columns, padding " << padding);
      const Matrix gate_up = Matrix(DType::kF32, 3, 2 * width, padding).FillNormal(1, 5);
      const Matrix out = RunOp(gate_up, padding);
      EXPECT_TRUE(Near(ExpectedSwiGlu(gate_up), out, kBf16HalfUlp * 1.01f, 0));
      EXPECT_TRUE(out.PaddingIsIntact());
    }
  }
}

TEST(CudaSwiGluTest, TheWholeRangeOfGates) {
  constexpr int64_t kWidth = 4001;
  Matrix gate_up(DType::kF32, 1, 2 * kWidth);
  for (int64_t i = 0; i < kWidth; ++i) {
    const int64_t sixteenths = i - kWidth / 2;
    gate_up.Set(0, i, static_cast<float>(sixteenths) / 16);  // -125 … 125
    gate_up.Set(0, kWidth + i, 1);
  }
  EXPECT_TRUE(Near(ExpectedSwiGlu(gate_up), RunOp(gate_up, 0), kBf16HalfUlp * 1.01f, 1e-35f));
}

TEST(CudaSwiGluTest, AnElementDoesNotDependOnItsPlace) {
  constexpr int64_t kWidth = 1500;
  const Matrix gate_up = Matrix(DType::kF32, 7, 2 * kWidth).FillNormal(1);
  const Matrix whole = RunOp(gate_up, 0);
  for (int64_t t = 0; t < 7; ++t) {
    for (int64_t i = 0; i < kWidth; i += 499) {  // as a matrix of one element
      Matrix single(DType::kF32, 1, 2);
      single.Set(0, 0, gate_up.At(t, i));
      single.Set(0, 1, gate_up.At(t, kWidth + i));
      EXPECT_EQ(RunOp(single, 0).At(0, 0), whole.At(t, i));
    }
  }
}

}  // namespace
}  // namespace marcoro::cuda
