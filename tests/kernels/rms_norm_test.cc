#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/matrix.h"

namespace marcoro {
namespace {

constexpr float kEpsilon = 1e-5f;

// x / sqrt(mean(x²) + epsilon) * weight in double, rounded to float.
Matrix Expected(const Matrix& x, const std::vector<float>& weight) {
  Matrix result(DType::kF32, x.rows(), x.columns());
  for (int64_t t = 0; t < x.rows(); ++t) {
    double sum = 0;
    for (int64_t i = 0; i < x.columns(); ++i) sum += double{x.At(t, i)} * x.At(t, i);
    const double scale = 1 / std::sqrt(sum / static_cast<double>(x.columns()) + kEpsilon);
    for (int64_t i = 0; i < x.columns(); ++i) {
      result.Set(t, i, static_cast<float>(x.At(t, i) * scale * weight[i]));
    }
  }
  return result;
}

std::vector<float> Weight(int64_t size) {
  const Matrix values = Matrix(DType::kF32, 1, size).FillNormal(7);
  const float* begin = values.view().Row<float>(0);
  return {begin, begin + size};
}

TEST(ReferenceRmsNormTest, ByHand) {
  const auto backend = MakeBackend("reference", 1, DType::kF32);
  Matrix x(DType::kF32, 1, 2);
  x.Set(0, 0, 3);
  x.Set(0, 1, 4);
  const std::vector<float> weight = {1, 0.5f};
  const Matrix out(DType::kF32, 1, 2);
  backend->RmsNorm(x.view(), weight.data(), 12.5f, out.view());  // mean 12.5, so divided by 5
  EXPECT_FLOAT_EQ(out.At(0, 0), 0.6f);
  EXPECT_FLOAT_EQ(out.At(0, 1), 0.4f);
}

class RmsNormTest : public ::testing::TestWithParam<std::string> {};

TEST_P(RmsNormTest, IsTheFormulaRoundedOnce) {
  const auto backend = MakeBackend(GetParam(), 2);
  for (const int64_t hidden : {1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 96, 200, 4096}) {
    SCOPED_TRACE(hidden);
    const Matrix x = Matrix(DType::kF32, 5, hidden, 3).FillNormal(1, 4);
    const std::vector<float> weight = Weight(hidden);
    const Matrix out(DType::kBF16, 5, hidden, 9);
    backend->RmsNorm(x.view(), weight.data(), kEpsilon, out.view());
    EXPECT_TRUE(Near(Expected(x, weight), out, kBf16HalfUlp * 1.01f, 0));
    EXPECT_TRUE(out.PaddingIsIntact());
  }
}

TEST_P(RmsNormTest, AddsTheResidualFirst) {
  const auto backend = MakeBackend(GetParam(), 2);
  for (const int64_t hidden : {1, 17, 64, 4096}) {
    SCOPED_TRACE(hidden);
    const Matrix before = Matrix(DType::kF32, 3, hidden, 1).FillNormal(1);
    Matrix residual = before;
    const Matrix delta = Matrix(DType::kF32, 3, hidden, 2).FillNormal(2);
    const std::vector<float> weight = Weight(hidden);
    const Matrix out(DType::kBF16, 3, hidden);
    backend->AddRmsNorm(residual.view(), delta.view(), weight.data(), kEpsilon, out.view());

    Matrix sum(DType::kF32, 3, hidden);
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < hidden; ++i) sum.Set(t, i, before.At(t, i) + delta.At(t, i));
    }
    EXPECT_TRUE(BitwiseEqual(sum, residual));
    EXPECT_TRUE(Near(Expected(sum, weight), out, kBf16HalfUlp * 1.01f, 0));
  }
}

TEST_P(RmsNormTest, ARowDoesNotDependOnItsCompanyOrTheThreads) {
  constexpr int64_t kHidden = 4096 + 21;
  const Matrix x = Matrix(DType::kF32, 33, kHidden).FillNormal(1);
  const std::vector<float> weight = Weight(kHidden);
  const Matrix alone(DType::kBF16, 33, kHidden);
  const auto single = MakeBackend(GetParam());
  for (int64_t t = 0; t < 33; ++t) {
    single->RmsNorm(x.view().Rows(t, 1), weight.data(), kEpsilon, alone.view().Rows(t, 1));
  }
  for (int threads = 1; threads <= 4; ++threads) {
    const auto backend = MakeBackend(GetParam(), threads);
    for (const int64_t tokens : {2, 9, 33}) {
      Matrix expected(DType::kBF16, tokens, kHidden);
      for (int64_t t = 0; t < tokens; ++t) expected.CopyRow(t, alone, t);
      const Matrix out(DType::kBF16, tokens, kHidden);
      backend->RmsNorm(x.view().Rows(0, tokens), weight.data(), kEpsilon, out.view());
      EXPECT_TRUE(BitwiseEqual(expected, out)) << threads << " threads, " << tokens << " tokens";
    }
  }
}

TEST_P(RmsNormTest, NanStaysInItsRow) {
  const auto backend = MakeBackend(GetParam());
  Matrix x = Matrix(DType::kF32, 3, 40).FillNormal(1);
  const std::vector<float> weight = Weight(40);
  const Matrix clean(DType::kBF16, 3, 40);
  backend->RmsNorm(x.view(), weight.data(), kEpsilon, clean.view());
  x.Set(1, 39, NAN);
  const Matrix out(DType::kBF16, 3, 40);
  backend->RmsNorm(x.view(), weight.data(), kEpsilon, out.view());
  for (int64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(out.At(0, i), clean.At(0, i));
    EXPECT_TRUE(std::isnan(out.At(1, i)));
    EXPECT_EQ(out.At(2, i), clean.At(2, i));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RmsNormTest, ::testing::ValuesIn(AllBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace marcoro
