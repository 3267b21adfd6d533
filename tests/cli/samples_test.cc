#include "deploy/cli/samples.h"

#include <gtest/gtest.h>

namespace marcoro {
namespace {

TEST(SamplesTest, WithoutValuesEverythingIsZero) {
  const Summary summary = Samples().Summarize();
  EXPECT_EQ(summary.count, 0u);
  EXPECT_EQ(summary.mean, 0);
  EXPECT_EQ(summary.p99, 0);
}

TEST(SamplesTest, OneValueIsEveryPercentile) {
  Samples samples;
  samples.Add(3);
  const Summary summary = samples.Summarize();
  EXPECT_EQ(summary.p50, 3);
  EXPECT_EQ(summary.p99, 3);
  EXPECT_EQ(summary.maximum, 3);
}

// Nearest rank: of 1 … 10 the 50th percentile is the 5th value, the 90th the 9th, and the 95th and
// 99th the 10th.
TEST(SamplesTest, PercentilesOfTenValuesByNearestRank) {
  Samples samples;
  for (const int value : {7, 1, 10, 4, 2, 9, 3, 8, 6, 5}) samples.Add(value);
  const Summary summary = samples.Summarize();
  EXPECT_EQ(summary.count, 10u);
  EXPECT_EQ(summary.mean, 5.5);
  EXPECT_EQ(summary.p50, 5);
  EXPECT_EQ(summary.p90, 9);
  EXPECT_EQ(summary.p95, 10);
  EXPECT_EQ(summary.p99, 10);
  EXPECT_EQ(summary.maximum, 10);
}

TEST(SamplesTest, PercentilesOfAHundredValuesAreTheirRanks) {
  Samples samples;
  for (int value = 100; value >= 1; --value) samples.Add(value);
  const Summary summary = samples.Summarize();
  EXPECT_EQ(summary.p50, 50);
  EXPECT_EQ(summary.p90, 90);
  EXPECT_EQ(summary.p95, 95);
  EXPECT_EQ(summary.p99, 99);
}

TEST(SamplesTest, NegativeValuesHaveAMaximumToo) {
  Samples samples;
  samples.Add(-2);
  samples.Add(-5);
  EXPECT_EQ(samples.Summarize().maximum, -2);
}

TEST(SamplesTest, BeyondItsCapacityPercentilesAreThoseOfAnEvenSample) {
  Samples samples(/*capacity=*/1000);
  constexpr int kValues = 100000;
  for (int value = 0; value < kValues; ++value) samples.Add(value);
  const Summary summary = samples.Summarize();
  EXPECT_EQ(summary.count, 100000u);
  EXPECT_EQ(summary.mean, (kValues - 1) / 2.0);
  EXPECT_EQ(summary.maximum, kValues - 1);
  // The standard error of a median of 1000 is 1.6 % of the range.
  EXPECT_NEAR(summary.p50, kValues / 2.0, kValues * 0.06);
  EXPECT_NEAR(summary.p90, kValues * 0.9, kValues * 0.04);
}

}  // namespace
}  // namespace marcoro
