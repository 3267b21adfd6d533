#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace marcoro::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<LogitSummary> Summarize(const Matrix& logits, bool with_scratch) {
  const DeviceMatrix device(logits);
  const DeviceArray<LogitSummary> out(static_cast<size_t>(logits.rows()));
  const DeviceArray<uint8_t> scratch(SummarizeLogitsScratchBytes(logits.rows(), logits.columns()));
  SummarizeLogits(TestStream(), device.view(), out.data(), with_scratch ? scratch.data() : nullptr);
  return out.ToHost();
}

void ExpectSame(const LogitSummary& a, const LogitSummary& b) {
  EXPECT_EQ(a.best, b.best);
  EXPECT_EQ(std::bit_cast<uint32_t>(a.max), std::bit_cast<uint32_t>(b.max));
  EXPECT_EQ(std::bit_cast<uint64_t>(a.log_sum_exp), std::bit_cast<uint64_t>(b.log_sum_exp));
  EXPECT_EQ(a.has_nan, b.has_nan);
}

// Of one row; with and without scratch memory it must be the same.
LogitSummary SummarizeRow(const std::vector<float>& row) {
  Matrix logits(DType::kF32, 1, static_cast<int64_t>(row.size()));
  for (size_t i = 0; i < row.size(); ++i) logits.Set(0, static_cast<int64_t>(i), row[i]);
  const LogitSummary result = Summarize(logits, true)[0];
  const LogitSummary other = Summarize(logits, false)[0];
  EXPECT_EQ(result.has_nan, other.has_nan);
  if (!result.has_nan) ExpectSame(result, other);
  return result;
}

double LogSumExp(const Matrix& logits, int64_t row, double max) {
  double sum = 0;
  for (int64_t i = 0; i < logits.columns(); ++i) sum += std::exp(logits.At(row, i) - max);
  return max + std::log(sum);
}

TEST(CudaSummarizeLogitsTest, LargestLogitAndItsLogSumExp) {
  for (const int64_t vocabulary : {1, 2, 31, 127, 128, 129, 1023, 1024, 1025, 5000, 32000, 33003}) {
    for (const int64_t padding : {0, 5}) {
      SCOPED_TRACE(::testing::Message() << vocabulary << " logits, padding " << padding);
      const Matrix logits = Matrix(DType::kF32, 3, vocabulary, padding).FillNormal(1, 8);
      const std::vector<LogitSummary> out = Summarize(logits, true);
      const std::vector<LogitSummary> by_rows = Summarize(logits, false);
      for (int64_t r = 0; r < 3; ++r) {
        int32_t best = 0;
        for (int32_t i = 0; i < vocabulary; ++i) {
          if (logits.At(r, i) > logits.At(r, best)) best = i;
        }
        EXPECT_EQ(out[r].best, best);
        EXPECT_EQ(out[r].max, logits.At(r, best));
        EXPECT_FALSE(out[r].has_nan);
        EXPECT_NEAR(out[r].log_sum_exp, LogSumExp(logits, r, out[r].max), 2e-7);
        ExpectSame(out[r], by_rows[r]);
      }
    }
  }
}

TEST(CudaSummarizeLogitsTest, AVocabularyOfAQuarterMillion) {
  const Matrix logits = Matrix(DType::kF32, 1, 256001).FillNormal(1, 3);
  const LogitSummary summary = Summarize(logits, true)[0];
  EXPECT_NEAR(summary.log_sum_exp, LogSumExp(logits, 0, summary.max), 2e-7);
  ExpectSame(summary, Summarize(logits, false)[0]);
}

TEST(CudaSummarizeLogitsTest, TiesGoToTheLowerIndex) {
  std::vector<float> row(3000, -2.0f);
  row[2999] = row[1717] = row[40] = 3;
  EXPECT_EQ(SummarizeRow(row).best, 40);
  EXPECT_EQ(SummarizeRow(std::vector<float>(100, 0.5f)).best, 0);
  EXPECT_EQ(SummarizeRow({-1, -0.0f, 0.0f}).best, 1);
}

TEST(CudaSummarizeLogitsTest, EqualLogitsGiveTheLogarithmOfTheirNumber) {
  EXPECT_NEAR(SummarizeRow(std::vector<float>(32000, 1.5f)).log_sum_exp, 1.5 + std::log(32000.0),
              1e-12);
}

TEST(CudaSummarizeLogitsTest, NanIsFoundWhereverItIs) {
  for (const size_t size : {1u, 7u, 100u, 1031u, 5000u}) {
    for (const size_t place : {size_t{0}, size / 2, size - 1}) {
      std::vector<float> row(size, 1.0f);
      EXPECT_FALSE(SummarizeRow(row).has_nan);
      row[place] = NAN;
      EXPECT_TRUE(SummarizeRow(row).has_nan) << size << " logits, NaN at " << place;
    }
  }
}

TEST(CudaSummarizeLogitsTest, MaskedLogitsAddNothing) {
  std::vector<float> row(5777, -kInfinity);
  row[500] = 2;
  row[3700] = 2;
  const LogitSummary summary = SummarizeRow(row);
  EXPECT_EQ(summary.best, 500);
  EXPECT_EQ(summary.max, 2);
  EXPECT_NEAR(summary.log_sum_exp, 2 + std::log(2.0), 1e-12);
  EXPECT_FALSE(summary.has_nan);
}

TEST(CudaSummarizeLogitsTest, AllMasked) {
  const LogitSummary summary = SummarizeRow(std::vector<float>(2777, -kInfinity));
  EXPECT_EQ(summary.best, 0);
  EXPECT_EQ(summary.max, -kInfinity);
  EXPECT_EQ(summary.log_sum_exp, -kInfinity);
  EXPECT_FALSE(summary.has_nan);
}

TEST(CudaSummarizeLogitsTest, AnInfiniteLogitIsTheLargest) {
  std::vector<float> row(3050, 1.0f);
  row[2033] = kInfinity;
  const LogitSummary summary = SummarizeRow(row);
  EXPECT_EQ(summary.best, 2033);
  EXPECT_EQ(summary.log_sum_exp, kInfinity);
  EXPECT_FALSE(summary.has_nan);
}

TEST(CudaSummarizeLogitsTest, HugeLogitsDoNotOverflow) {
  const LogitSummary summary = SummarizeRow({3e38f, -3e38f, 3e38f});
  EXPECT_EQ(summary.best, 0);
  EXPECT_NEAR(summary.log_sum_exp, double{3e38f}, 1e30);
}

TEST(CudaSummarizeLogitsTest, TheBitsDependNeitherOnCompanyNorOnTheOrderOfThreads) {
  const Matrix logits = Matrix(DType::kF32, 5, 9000).FillNormal(3, 4);
  const std::vector<LogitSummary> expected = Summarize(logits, true);
  InSeveralThreadOrders([&] {
    for (const bool with_scratch : {false, true}) {
      const std::vector<LogitSummary> again = Summarize(logits, with_scratch);
      for (size_t r = 0; r < 5; ++r) ExpectSame(expected[r], again[r]);
    }
  });
  for (int64_t r = 0; r < 5; ++r) {
    Matrix alone(DType::kF32, 1, 9000, 3);
    alone.CopyRow(0, logits, r);
    ExpectSame(expected[r], Summarize(alone, true)[0]);
  }
}

}  // namespace
}  // namespace marcoro::cuda
