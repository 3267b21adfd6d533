#include "deploy/cli/roofline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "deploy/cli/bench_report.h"

namespace marcoro {
namespace {

// Mistral-7B: 7,241,732,096 parameters, of them 2 * 131,072,000 in embedding and lm_head and
// 65 * 4096 in norms.
ModelConfig SevenBillion() {
  ModelConfig config;
  config.hidden_size = 4096;
  config.layers = 32;
  config.heads = 32;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.ffn_size = 14336;
  config.vocabulary_size = 32000;
  return config;
}

constexpr double kHead = 131'072'000;
constexpr double kLinear = 7'241'732'096.0 - 2 * kHead - 65 * 4096;

TEST(RooflineTest, TheSevenBillionModelReadsSevenPointTwoFourGigabytesAStepInFp8) {
  const auto cost = CostOf(SevenBillion(), "fp8");
  ASSERT_TRUE(cost.ok());
  EXPECT_EQ(cost->linear_parameters, kLinear);
  EXPECT_EQ(cost->weight_bytes, kLinear + 2 * kHead);
  EXPECT_NEAR(cost->weight_bytes / 1e9, 7.24, 0.005);
}

TEST(RooflineTest, Bf16WeightsAreTwoBytes) {
  EXPECT_EQ(CostOf(SevenBillion(), "bf16")->weight_bytes, 2 * kLinear + 2 * kHead);
  EXPECT_FALSE(CostOf(SevenBillion(), "int3").ok());
}

TEST(RooflineTest, DecodeTakesTwoOperationsAWeightAndToken) {
  const auto cost = CostOf(SevenBillion(), "fp8");
  EXPECT_EQ(cost->DecodeFlops(8), 16 * (kLinear + kHead));
}

TEST(RooflineTest, PrefillCountsAttentionAndOneRowOfLogits) {
  const auto cost = CostOf(SevenBillion(), "fp8");
  const double pairs = 512.0 * 513 / 2;
  EXPECT_EQ(cost->PrefillFlops(512), 2 * 512 * kLinear + 4.0 * 32 * 32 * 128 * pairs + 2 * kHead);
}

TEST(RooflineTest, SmallBatchesAreBoundByReadingAndLargeOnesByArithmetic) {
  const auto cost = CostOf(SevenBillion(), "fp8");
  MachineLimits limits;
  limits.read_bytes_per_second = 30e9;
  limits.bf16_flops = 200e9;
  EXPECT_DOUBLE_EQ(DecodeSeconds(*cost, limits, 1), cost->weight_bytes / 30e9);
  EXPECT_DOUBLE_EQ(DecodeSeconds(*cost, limits, 32), 64 * (kLinear + kHead) / 200e9);
}

TEST(RooflineTest, ARoundComparesItsMedianStepWithTheMeanOfTheLimitsAroundIt) {
  ModelCost cost;
  cost.weight_bytes = 15e9;
  MachineLimits before, after;
  before.read_bytes_per_second = 20e9;
  after.read_bytes_per_second = 40e9;
  before.bf16_flops = after.bf16_flops = 1e12;
  LoadResult result;
  for (const double gap : {0.4, 1.0, 9.0}) result.inter_token.Add(gap);
  result.succeeded = 1;
  result.output_tokens = 4;
  result.seconds = 10;
  const RooflineRound round = CompareWithLimits(before, after, cost, 1, result);
  EXPECT_DOUBLE_EQ(round.shortest_step_seconds, 0.5);
  EXPECT_DOUBLE_EQ(round.decode_ratio(), 0.5);
  EXPECT_EQ(round.prefill_ratio(), 0);
}

TEST(RooflineTest, TheReportTellsTheMedianOfTheRoundsThatMeasuredSomething) {
  RooflineReport report;
  for (const double seconds : {0.5, 0.25, 0.0, 1.0}) {
    RooflineRound& round = report.rounds.emplace_back();
    round.step_seconds = seconds;
    round.shortest_step_seconds = 0.2;
  }
  EXPECT_THAT(report.decode_ratios(), testing::ElementsAre(0.2, 0.4, 0.8));
  EXPECT_DOUBLE_EQ(Median(report.decode_ratios()), 0.4);
  EXPECT_DOUBLE_EQ(Median({1, 2, 3, 4}), 2);
  EXPECT_EQ(Median({}), 0);
  EXPECT_THAT(report.prefill_ratios(), testing::IsEmpty());
}

TEST(LoadResultTest, PartsOfARunAddUp) {
  LoadResult sum, part;
  part.inter_token.Add(1);
  part.inter_token.Add(3);
  part.succeeded = 2;
  part.failed = 1;
  part.seconds = 1.5;
  part.errors["UNAVAILABLE"] = 1;
  part.first_error["UNAVAILABLE"] = "first";
  sum.Add(part);
  part.first_error["UNAVAILABLE"] = "second";
  sum.Add(part);
  EXPECT_EQ(sum.inter_token.Summarize().count, 4);
  EXPECT_DOUBLE_EQ(sum.inter_token.Summarize().mean, 2);
  EXPECT_EQ(sum.succeeded, 4);
  EXPECT_DOUBLE_EQ(sum.seconds, 3);
  EXPECT_EQ(sum.errors["UNAVAILABLE"], 2);
  EXPECT_EQ(sum.first_error["UNAVAILABLE"], "first");
}

TEST(RooflineTest, OutputsOfOneTokenMeasurePrefill) {
  ModelCost cost;
  cost.linear_parameters = 1e9;
  MachineLimits limits;
  limits.read_bytes_per_second = 1e9;
  limits.bf16_flops = 1e12;
  LoadResult result;
  result.succeeded = 5;
  result.output_tokens = 5;
  result.prompt_tokens = 500;  // 100 each
  result.seconds = 2;
  const RooflineRound round = CompareWithLimits(limits, limits, cost, 1, result);
  // 5 prompts * 2 * 100 tokens * 1e9 weights in 2 seconds.
  EXPECT_DOUBLE_EQ(round.prefill_flops, 5e11);
  EXPECT_DOUBLE_EQ(round.prefill_ratio(), 0.5);
  EXPECT_EQ(round.decode_ratio(), 0);
}

}  // namespace
}  // namespace marcoro
