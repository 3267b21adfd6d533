#include "deploy/cli/length_distribution.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "deploy/cli/arrivals.h"

namespace marcoro {
namespace {

constexpr int kDraws = 20000;

std::vector<double> Draw(const char* text) {
  const auto distribution = LengthDistribution::Parse(text);
  EXPECT_TRUE(distribution.ok()) << distribution.status();
  Random random(7);
  std::vector<double> lengths;
  for (int i = 0; i < kDraws; ++i) lengths.push_back(distribution->Draw(&random));
  return lengths;
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double Deviation(const std::vector<double>& values) {
  const double mean = Mean(values);
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

TEST(LengthDistributionTest, ANumberIsAFixedLength) {
  for (const char* text : {"128", "fixed:128"}) {
    const std::vector<double> lengths = Draw(text);
    EXPECT_THAT(std::set<double>(lengths.begin(), lengths.end()), testing::ElementsAre(128))
        << text;
  }
}

TEST(LengthDistributionTest, UniformHasEveryLengthAndBothEnds) {
  const std::vector<double> lengths = Draw("uniform:10:13");
  EXPECT_THAT(std::set<double>(lengths.begin(), lengths.end()),
              testing::ElementsAre(10, 11, 12, 13));
  // The standard error of the mean is sqrt(15 / 12) / sqrt(20000) = 0.008.
  EXPECT_NEAR(Mean(lengths), 11.5, 0.04);
}

TEST(LengthDistributionTest, NormalHasItsMeanAndDeviation) {
  const std::vector<double> lengths = Draw("normal:500:50");
  EXPECT_NEAR(Mean(lengths), 500, 2);
  EXPECT_NEAR(Deviation(lengths), 50, 1.5);
}

TEST(LengthDistributionTest, LogNormalHasItsMedianAndTail) {
  const std::vector<double> lengths = Draw("lognormal:200:0.5");
  EXPECT_NEAR(Median(lengths), 200, 4);
  EXPECT_NEAR(Mean(lengths), 200 * std::exp(0.125), 4);  // median * exp(sigma² / 2)
}

TEST(LengthDistributionTest, ExponentialHasItsMean) {
  EXPECT_NEAR(Mean(Draw("exponential:100")), 100, 3);
}

TEST(LengthDistributionTest, NoLengthIsBelowOne) {
  const std::vector<double> lengths = Draw("normal:1:5");
  EXPECT_EQ(*std::min_element(lengths.begin(), lengths.end()), 1);
}

TEST(LengthDistributionTest, TheSameSeedDrawsTheSameLengths) {
  EXPECT_EQ(Draw("lognormal:200:0.5"), Draw("lognormal:200:0.5"));
}

TEST(LengthDistributionTest, MalformedTextsAreRefused) {
  for (const char* text : {"", "x", "0", "-1", "0.2", "fixed", "uniform:1", "uniform:5:4",
                           "normal:nan:1", "normal:5:-1", "1e9", "uniform:1:2:3", "gamma:1"}) {
    EXPECT_EQ(LengthDistribution::Parse(text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(PoissonArrivalsTest, GapsAreExponentialWithTheRatesMean) {
  PoissonArrivals arrivals(/*rate=*/50, /*seed=*/3);
  std::vector<double> gaps;
  double last = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double time = arrivals.Next();
    gaps.push_back(time - last);
    last = time;
  }
  EXPECT_NEAR(Mean(gaps), 1.0 / 50, 0.02 / 50 * 2);
  EXPECT_NEAR(Deviation(gaps), 1.0 / 50, 0.1 / 50);  // equals the mean for an exponential
  EXPECT_NEAR(Median(gaps), std::log(2.0) / 50, 0.05 / 50);
}

TEST(PoissonArrivalsTest, CountsInEqualIntervalsVaryAsMuchAsTheirMean) {
  PoissonArrivals arrivals(/*rate=*/20, /*seed=*/11);
  std::vector<double> counts(2000, 0);
  for (double time = arrivals.Next(); time < 2000; time = arrivals.Next()) {
    counts[static_cast<size_t>(time)] += 1;
  }
  EXPECT_NEAR(Mean(counts), 20, 0.5);
  EXPECT_NEAR(Deviation(counts) * Deviation(counts), 20, 2);
}

TEST(PoissonArrivalsTest, TheSeedDecidesTheTimes) {
  EXPECT_EQ(PoissonArrivals(1, 5).Next(), PoissonArrivals(1, 5).Next());
  EXPECT_NE(PoissonArrivals(1, 5).Next(), PoissonArrivals(1, 6).Next());
}

}  // namespace
}  // namespace marcoro
