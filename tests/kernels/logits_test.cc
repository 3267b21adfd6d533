#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/matrix.h"

namespace marcoro {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double LogSumExp(const Matrix& logits, int64_t row, double max) {
  double sum = 0;
  for (int64_t i = 0; i < logits.columns(); ++i) sum += std::exp(logits.At(row, i) - max);
  return max + std::log(sum);
}

class SummarizeLogitsTest : public ::testing::TestWithParam<std::string> {
 protected:
  LogitSummary Summarize(const std::vector<float>& row) {
    Matrix logits(DType::kF32, 1, static_cast<int64_t>(row.size()));
    for (size_t i = 0; i < row.size(); ++i) logits.Set(0, static_cast<int64_t>(i), row[i]);
    std::vector<LogitSummary> result(1);
    MakeBackend(GetParam())->SummarizeLogits(logits.view(), absl::MakeSpan(result));
    return result[0];
  }
};

TEST_P(SummarizeLogitsTest, LargestLogitAndItsLogSumExp) {
  const auto backend = MakeBackend(GetParam(), 2);
  for (const int64_t vocabulary : {1, 2, 15, 16, 17, 255, 256, 257, 1000, 1024, 32000, 32003}) {
    SCOPED_TRACE(vocabulary);
    const Matrix logits = Matrix(DType::kF32, 4, vocabulary, 5).FillNormal(1, 8);
    std::vector<LogitSummary> out(4);
    backend->SummarizeLogits(logits.view(), absl::MakeSpan(out));
    for (int64_t r = 0; r < 4; ++r) {
      int32_t best = 0;
      for (int32_t i = 0; i < vocabulary; ++i) {
        if (logits.At(r, i) > logits.At(r, best)) best = i;
      }
      EXPECT_EQ(out[r].best, best);
      EXPECT_EQ(out[r].max, logits.At(r, best));
      EXPECT_FALSE(out[r].has_nan);
      EXPECT_NEAR(out[r].log_sum_exp, LogSumExp(logits, r, out[r].max), 2e-7);
    }
  }
}

TEST_P(SummarizeLogitsTest, TiesGoToTheLowerIndex) {
  std::vector<float> row(3000, -2.0f);
  row[2999] = row[1717] = row[40] = 3;
  EXPECT_EQ(Summarize(row).best, 40);
  EXPECT_EQ(Summarize(std::vector<float>(100, 0.5f)).best, 0);
  EXPECT_EQ(Summarize({-1, -0.0f, 0.0f}).best, 1);
}

TEST_P(SummarizeLogitsTest, EqualLogitsGiveTheLogarithmOfTheirNumber) {
  EXPECT_NEAR(Summarize(std::vector<float>(32000, 1.5f)).log_sum_exp, 1.5 + std::log(32000.0),
              1e-12);
}

TEST_P(SummarizeLogitsTest, NanIsFoundWhereverItIs) {
  for (const size_t size : {1u, 7u, 16u, 100u, 1031u}) {
    for (const size_t place : {size_t{0}, size / 2, size - 1}) {
      std::vector<float> row(size, 1.0f);
      EXPECT_FALSE(Summarize(row).has_nan);
      row[place] = NAN;
      EXPECT_TRUE(Summarize(row).has_nan) << size << " logits, NaN at " << place;
    }
  }
}

TEST_P(SummarizeLogitsTest, MaskedLogitsAddNothing) {
  std::vector<float> row(777, -kInfinity);
  row[500] = 2;
  row[700] = 2;
  const LogitSummary summary = Summarize(row);
  EXPECT_EQ(summary.best, 500);
  EXPECT_EQ(summary.max, 2);
  EXPECT_NEAR(summary.log_sum_exp, 2 + std::log(2.0), 1e-12);
  EXPECT_FALSE(summary.has_nan);
}

TEST_P(SummarizeLogitsTest, AllMasked) {
  const LogitSummary summary = Summarize(std::vector<float>(777, -kInfinity));
  EXPECT_EQ(summary.best, 0);
  EXPECT_EQ(summary.max, -kInfinity);
  EXPECT_EQ(summary.log_sum_exp, -kInfinity);
  EXPECT_FALSE(summary.has_nan);
}

TEST_P(SummarizeLogitsTest, AnInfiniteLogitIsTheLargest) {
  std::vector<float> row(50, 1.0f);
  row[33] = kInfinity;
  const LogitSummary summary = Summarize(row);
  EXPECT_EQ(summary.best, 33);
  EXPECT_EQ(summary.log_sum_exp, kInfinity);
  EXPECT_FALSE(summary.has_nan);
}

TEST_P(SummarizeLogitsTest, HugeLogitsDoNotOverflow) {
  const LogitSummary summary = Summarize({3e38f, -3e38f, 3e38f});
  EXPECT_EQ(summary.best, 0);
  EXPECT_NEAR(summary.log_sum_exp, double{3e38f}, 1e30);
}

TEST_P(SummarizeLogitsTest, ARowDoesNotDependOnItsCompanyOrTheThreads) {
  const Matrix logits = Matrix(DType::kF32, 9, 32000).FillNormal(3, 4);
  const auto single = MakeBackend(GetParam());
  for (int threads = 1; threads <= 4; ++threads) {
    const auto backend = MakeBackend(GetParam(), threads);
    std::vector<LogitSummary> together(9);
    backend->SummarizeLogits(logits.view(), absl::MakeSpan(together));
    for (int64_t r = 0; r < 9; ++r) {
      std::vector<LogitSummary> alone(1);
      single->SummarizeLogits(logits.view().Rows(r, 1), absl::MakeSpan(alone));
      EXPECT_EQ(alone[0].best, together[r].best);
      EXPECT_EQ(alone[0].log_sum_exp, together[r].log_sum_exp) << "row " << r;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SummarizeLogitsTest, ::testing::ValuesIn(AllBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace marcoro
