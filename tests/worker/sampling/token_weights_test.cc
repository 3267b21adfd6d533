#include "worker/sampling/token_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace marcoro {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();

uint32_t WeightOf(float logit, float max, float temperature) {
  float exponent = 0;
  uint32_t weight = 0;
  WeighTokens({&logit, 1}, max, temperature, {&exponent, 1}, {&weight, 1});
  return weight;
}

TEST(WeighTokensTest, TheLargestLogitHasTheFullWeight) {
  EXPECT_EQ(WeightOf(3.5f, 3.5f, 1.0f), kFullWeight);
  EXPECT_EQ(WeightOf(-80.0f, -80.0f, 0.01f), kFullWeight);
}

TEST(WeighTokensTest, WeightsAreExponentialsToSevenDigits) {
  for (double x = 0; x > -20; x -= 0.00137) {
    const auto logit = static_cast<float>(x);
    const double exact = std::exp(static_cast<double>(logit)) * kFullWeight;
    ASSERT_NEAR(WeightOf(logit, 0, 1), exact, 0.51 + exact * 2.5e-7) << logit;
  }
}

TEST(WeighTokensTest, DividesByTheTemperature) {
  EXPECT_NEAR(WeightOf(0, 1, 0.5f), std::exp(-2.0) * kFullWeight, 100);
  EXPECT_NEAR(WeightOf(0, 1, 100), std::exp(-0.01) * kFullWeight, 300);
  std::vector<float> exponents(2);
  std::vector<uint32_t> weights(2);
  const std::vector<float> logits = {1, 2};
  WeighTokens(logits, 2, 0.25f, absl::MakeSpan(exponents), absl::MakeSpan(weights));
  EXPECT_EQ(exponents[0], -4);
  EXPECT_EQ(exponents[1], 0);
}

TEST(WeighTokensTest, ExtremesHaveNoWeightAndNoOverflow) {
  EXPECT_EQ(WeightOf(-kInfinity, 0, 1), 0u);
  EXPECT_EQ(WeightOf(-kMost, kMost, 1), 0u);
  EXPECT_EQ(WeightOf(1, 1, 1e-45f), kFullWeight);
  EXPECT_EQ(WeightOf(0.99f, 1, 1e-45f), 0u);
}

TEST(WeighTokensTest, NeighboursDoNotMatter) {
  std::vector<float> logits, exponents(1003);
  std::vector<uint32_t> weights(1003);
  for (int i = 0; i < 1003; ++i) logits.push_back(-0.017f * static_cast<float>(i));
  WeighTokens(logits, 0, 0.8f, absl::MakeSpan(exponents), absl::MakeSpan(weights));
  for (int i = 0; i < 1003; ++i) ASSERT_EQ(weights[i], WeightOf(logits[i], 0, 0.8f)) << i;
}

}  // namespace
}  // namespace marcoro
