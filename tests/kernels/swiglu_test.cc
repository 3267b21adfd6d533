#include "gtest/gtest.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/matrix.h"
#include "tests/kernels/swiglu_formula.h"

namespace marcoro {
namespace {

class SwiGluTest : public ::testing::TestWithParam<std::string> {};

TEST_P(SwiGluTest, IsTheFormulaRoundedOnce) {
  const auto backend = MakeBackend(GetParam(), 2);
  for (const int64_t width : {1, 5, 16, 17, 176, 2048, 2049, 14336}) {
    for (const int64_t tokens : {1, 3}) {
      SCOPED_TRACE(::testing::Message() << tokens << " x " << width);
      const Matrix gate_up = Matrix(DType::kF32, tokens, 2 * width, 3).FillNormal(1, 5);
      const Matrix out(DType::kBF16, tokens, width, 7);
      backend->SwiGlu(gate_up.view(), out.view());
      EXPECT_TRUE(Near(ExpectedSwiGlu(gate_up), out, kBf16HalfUlp * 1.01f, 0));
      EXPECT_TRUE(out.PaddingIsIntact());
    }
  }
}

TEST_P(SwiGluTest, TheWholeRangeOfGates) {
  const auto backend = MakeBackend(GetParam());
  constexpr int64_t kWidth = 4001;
  Matrix gate_up(DType::kF32, 1, 2 * kWidth);
  for (int64_t i = 0; i < kWidth; ++i) {
    const int64_t centered = i - kWidth / 2;
    gate_up.Set(0, i, static_cast<float>(centered) / 16);  // -125 … 125
    gate_up.Set(0, kWidth + i, 1);
  }
  const Matrix out(DType::kBF16, 1, kWidth);
  backend->SwiGlu(gate_up.view(), out.view());
  EXPECT_TRUE(Near(ExpectedSwiGlu(gate_up), out, kBf16HalfUlp * 1.01f, 1e-35f));
}

TEST_P(SwiGluTest, AnElementDoesNotDependOnItsPlaceOrTheThreads) {
  const auto single = MakeBackend(GetParam());
  constexpr int64_t kWidth = 5000;
  const Matrix gate_up = Matrix(DType::kF32, 33, 2 * kWidth).FillNormal(1);
  const Matrix expected(DType::kBF16, 33, kWidth);
  for (int64_t t = 0; t < 33; ++t) {
    for (int64_t i = 0; i < kWidth; i += 1000) {  // as narrow matrices of the same elements
      Matrix part(DType::kF32, 1, 2 * 1000);
      for (int64_t c = 0; c < 1000; ++c) {
        part.Set(0, c, gate_up.At(t, i + c));
        part.Set(0, 1000 + c, gate_up.At(t, kWidth + i + c));
      }
      Tensor out = expected.view().Rows(t, 1);
      out.data = out.Row<BFloat16>(0) + i;
      out.columns = 1000;
      single->SwiGlu(part.view(), out);
    }
  }
  for (int threads = 1; threads <= 4; ++threads) {
    const auto backend = MakeBackend(GetParam(), threads);
    const Matrix out(DType::kBF16, 33, kWidth);
    backend->SwiGlu(gate_up.view(), out.view());
    EXPECT_TRUE(BitwiseEqual(expected, out)) << threads << " threads";
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SwiGluTest, ::testing::ValuesIn(AllBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace marcoro
