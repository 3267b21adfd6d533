#include "worker/sampling/distribution.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "tests/worker/sampling/reference.h"
#include "worker/sampling/philox.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<double> Built(const std::vector<float>& logits, const SamplingParams& params) {
  TokenDistribution distribution;
  distribution.Build(logits, ReferenceSummary(logits).max, params);
  std::vector<double> p(logits.size(), 0.0);
  for (const auto& [id, probability] : distribution.Probabilities()) p[id] = probability;
  return p;
}

std::vector<TokenId> Kept(const std::vector<float>& logits, const SamplingParams& params) {
  const std::vector<double> p = Built(logits, params);
  std::vector<TokenId> ids;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] > 0) ids.push_back(static_cast<TokenId>(i));
  }
  return ids;
}

TEST(TokenDistributionTest, AtEqualLogitsLowerIdsStay) {
  const std::vector<float> equal(100, 1.5f);
  EXPECT_THAT(Kept(equal, {.top_k = 3}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Kept(equal, {.top_p = 0.025f}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Kept(equal, {.typical_p = 0.015f}), ElementsAre(0, 1));
  EXPECT_THAT(Kept({0, 2, 1, 2, 1, 1}, {.top_k = 4}), ElementsAre(1, 2, 3, 4));
}

TEST(TokenDistributionTest, TopPStopsAtTheTokenThatReachesIt) {
  // Probabilities 1/2, 1/4, 1/8, 1/8: exact in the weights.
  const float ln2 = std::log(2.0f);
  const std::vector<float> logits = {0, -2 * ln2, -ln2, -2 * ln2};
  EXPECT_THAT(Kept(logits, {.top_p = 0.49f}), ElementsAre(0));
  EXPECT_THAT(Kept(logits, {.top_p = 0.51f}), ElementsAre(0, 2));
  EXPECT_THAT(Kept(logits, {.top_p = 0.80f}), ElementsAre(0, 1, 2));
  EXPECT_THAT(Kept(logits, {.top_p = 0.99f}), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Kept({1, 1, 1, 1}, {.top_p = 0.5f}), ElementsAre(0, 1)) << "reached is enough";
}

TEST(TokenDistributionTest, TheLikeliestAlwaysStays) {
  const std::vector<float> logits = {0, 3, 1, 2};
  EXPECT_THAT(Kept(logits, {.top_p = 1e-6f}), ElementsAre(1));
  EXPECT_THAT(Kept(logits, {.min_p = 1.0f}), ElementsAre(1));
  EXPECT_THAT(Kept(logits, {.temperature = 1e-30f}), ElementsAre(1));
  EXPECT_THAT(Kept({-1e30f, -kInfinity}, {.top_k = 5, .top_p = 0.1f}), ElementsAre(0));
}

TEST(TokenDistributionTest, ForbiddenTokensHaveNoChance) {
  const std::vector<float> logits = {1, -kInfinity, 2, -kInfinity};
  for (const SamplingParams& params : std::vector<SamplingParams>{{},
                                                                  {.temperature = 100},
                                                                  {.top_k = 4},
                                                                  {.top_k = 3},
                                                                  {.top_p = 0.9999f},
                                                                  {.min_p = 1e-6f},
                                                                  {.typical_p = 0.9999f}}) {
    EXPECT_THAT(Kept(logits, params), ElementsAre(0, 2));
  }
}

// Any mix of filters, at peaked and flat distributions, leaves what full sorts leave. A token whose
// cumulative probability meets a bound up to rounding may fall on either side: such rounds differ
// in one token and are few.
TEST(TokenDistributionTest, AgreesWithThePlainReferenceOnRandomMixes) {
  std::mt19937_64 random(3);
  const auto chance = [&](double p) { return std::bernoulli_distribution(p)(random); };
  const auto uniform = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  int borderline = 0;
  constexpr int kRounds = 600;
  for (int round = 0; round < kRounds; ++round) {
    const auto vocabulary = static_cast<int32_t>(uniform(1, chance(0.2) ? 5000 : 300));
    const std::vector<float> logits = RandomLogits(vocabulary, uniform(0.01, 6), round);
    SamplingParams params;
    if (chance(0.5)) params.temperature = static_cast<float>(uniform(0.05, 3));
    if (chance(0.4)) params.top_k = static_cast<int32_t>(uniform(1, vocabulary + 10));
    if (chance(0.5)) params.top_p = static_cast<float>(uniform(0.01, 1));
    if (chance(0.3)) params.min_p = static_cast<float>(uniform(0, 0.5));
    if (chance(0.3)) params.typical_p = static_cast<float>(uniform(0.01, 1));
    const std::vector<double> actual = Built(logits, params);
    const std::vector<double> expected = ReferenceDistribution(logits, params, {}, {});
    double most = 0;
    int differ = 0;
    for (int32_t i = 0; i < vocabulary; ++i) {
      most = std::max(most, std::abs(actual[i] - expected[i]));
      differ += (actual[i] > 0) != (expected[i] > 1e-8) ? 1 : 0;
    }
    if (most > 1e-5) {
      ++borderline;
      EXPECT_LE(differ, 1) << "round " << round;
    }
  }
  EXPECT_LE(borderline, kRounds / 100);
}

// 99.9 % quantile of the chi-square distribution, after Wilson and Hilferty.
double ChiSquareQuantile(int degrees) {
  const double a = 2.0 / (9.0 * degrees);
  return degrees * std::pow(1 - a + 3.0902 * std::sqrt(a), 3);
}

TEST(TokenDistributionTest, DrawsFollowTheDistribution) {
  const std::vector<float> logits = RandomLogits(600, 1.5, 11);
  const std::vector<SamplingParams> mixes = {{},
                                             {.temperature = 0.6f},
                                             {.temperature = 2.0f},
                                             {.top_k = 40},
                                             {.top_p = 0.9f},
                                             {.min_p = 0.05f},
                                             {.typical_p = 0.8f},
                                             {.temperature = 0.7f, .top_k = 50, .top_p = 0.95f}};
  constexpr int kDraws = 200000;
  for (size_t m = 0; m < mixes.size(); ++m) {
    const std::vector<double> expected = ReferenceDistribution(logits, mixes[m], {}, {});
    TokenDistribution distribution;
    distribution.Build(logits, ReferenceSummary(logits).max, mixes[m]);
    std::vector<int> counts(logits.size(), 0);
    for (int i = 0; i < kDraws; ++i) ++counts[distribution.Draw(RandomBits53(m, i))];

    double chi_square = 0, rare_expected = 0;
    int degrees = -1, rare = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      if (expected[i] == 0) {
        ASSERT_EQ(counts[i], 0) << "mix " << m << " draws token " << i;
      } else if (expected[i] * kDraws < 10) {
        rare += counts[i];
        rare_expected += expected[i] * kDraws;
      } else {
        const double mean = expected[i] * kDraws;
        chi_square += (counts[i] - mean) * (counts[i] - mean) / mean;
        ++degrees;
      }
    }
    if (rare_expected > 5) {
      chi_square += (rare - rare_expected) * (rare - rare_expected) / rare_expected;
      ++degrees;
    }
    EXPECT_LT(chi_square, ChiSquareQuantile(degrees)) << "mix " << m << ", " << degrees;
  }
}

TEST(TokenDistributionTest, DrawIsAFunctionOfDistributionAndBits) {
  const std::vector<float> logits = RandomLogits(3000, 1, 4);
  const float max = ReferenceSummary(logits).max;
  for (const SamplingParams& params :
       std::vector<SamplingParams>{{}, {.top_p = 0.9f}, {.typical_p = 0.5f}, {.top_k = 100}}) {
    TokenDistribution drawn_often;
    drawn_often.Build(logits, max, params);
    std::vector<TokenId> first;
    for (int i = 0; i < 200; ++i) first.push_back(drawn_often.Draw(RandomBits53(9, i)));
    for (int i = 199; i >= 0; --i) {
      TokenDistribution fresh;
      fresh.Build(logits, max, params);
      ASSERT_EQ(fresh.Draw(RandomBits53(9, i)), first[i]);
      ASSERT_EQ(drawn_often.Draw(RandomBits53(9, i)), first[i]);
    }
  }
}

TEST(TokenDistributionTest, TheEndsOfTheUnitIntervalAreTokensToo) {
  TokenDistribution distribution;
  const std::vector<float> logits = {-kInfinity, 0, -1, -kInfinity};
  for (const SamplingParams& params : std::vector<SamplingParams>{{}, {.top_k = 2}}) {
    distribution.Build(logits, 0, params);
    EXPECT_EQ(distribution.Draw(0), 1);
    EXPECT_EQ(distribution.Draw((uint64_t{1} << 53) - 1), 2);
  }
}

}  // namespace
}  // namespace marcoro
