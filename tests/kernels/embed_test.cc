#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/matrix.h"

namespace marcoro {
namespace {

class EmbedTest : public ::testing::TestWithParam<std::string> {};

TEST_P(EmbedTest, CopiesTheRowsOfTheIds) {
  const auto backend = MakeBackend(GetParam(), 2);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int64_t hidden : {1, 7, 16, 33, 96, 4096}) {
      for (const int64_t tokens : {1, 2, 33}) {
        SCOPED_TRACE(::testing::Message() << hidden << " columns, " << tokens << " tokens");
        const Matrix table = Matrix(dtype, 50, hidden, 3).FillNormal(1);
        std::vector<int32_t> ids;
        for (int64_t t = 0; t < tokens; ++t) ids.push_back(static_cast<int32_t>(t * 37 % 50));
        Matrix out(DType::kF32, tokens, hidden, 5);
        backend->Embed(ids, table.view(), out.view());

        Matrix expected(DType::kF32, tokens, hidden);
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t i = 0; i < hidden; ++i) expected.Set(t, i, table.At(ids[t], i));
        }
        EXPECT_TRUE(BitwiseEqual(expected, out));
        EXPECT_TRUE(out.PaddingIsIntact());
      }
    }
  }
}

TEST_P(EmbedTest, NoTokensIsNoWork) {
  const auto backend = MakeBackend(GetParam());
  const Matrix table = Matrix(DType::kBF16, 4, 8).FillNormal(1);
  const Matrix out(DType::kF32, 0, 8);
  backend->Embed({}, table.view(), out.view());
}

TEST_P(EmbedTest, AnIdOutsideTheTableIsABug) {
  const auto backend = MakeBackend(GetParam());
  const Matrix table = Matrix(DType::kBF16, 4, 8).FillNormal(1);
  const Matrix out(DType::kF32, 1, 8);
  const std::vector<int32_t> ids = {4};
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(backend->Embed(ids, table.view(), out.view()), "check failed: id >= 0");
}

INSTANTIATE_TEST_SUITE_P(Backends, EmbedTest, ::testing::ValuesIn(AllBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace marcoro
