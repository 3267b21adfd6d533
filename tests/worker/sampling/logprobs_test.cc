#include "worker/sampling/logprobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/worker/sampling/reference.h"

namespace marcoro {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(LogprobOfTest, IsTheLogarithmOfTheModelsProbability) {
  // Probabilities 1/7, 2/7, 4/7.
  const std::vector<float> logits = {0, std::log(2.0f), std::log(4.0f)};
  std::vector<Candidate> scratch;
  const TokenLogprob result = LogprobOf(logits, ReferenceSummary(logits), 1, 0, &scratch);
  EXPECT_EQ(result.token, 1);
  EXPECT_NEAR(result.logprob, std::log(2.0 / 7), 1e-6);
  EXPECT_THAT(result.top, IsEmpty());
}

TEST(LogprobOfTest, AlternativesComeBestFirstAndTiesByRisingId) {
  const std::vector<float> logits = {1, 3, 2, 3, 0};
  std::vector<Candidate> scratch;
  const TokenLogprob result = LogprobOf(logits, ReferenceSummary(logits), 4, 3, &scratch);
  ASSERT_THAT(result.top, SizeIs(3));
  EXPECT_EQ(result.top[0].token, 1);
  EXPECT_EQ(result.top[1].token, 3);
  EXPECT_EQ(result.top[2].token, 2);
  EXPECT_EQ(result.top[0].logprob, result.top[1].logprob);
  EXPECT_NEAR(result.top[2].logprob - result.logprob, 2, 1e-6) << "differences of logits";
}

TEST(LogprobOfTest, ProbabilitiesOfAllTokensSumUpToOne) {
  const std::vector<float> logits = RandomLogits(20, 3, 5);
  std::vector<Candidate> scratch;
  const TokenLogprob result = LogprobOf(logits, ReferenceSummary(logits), 0, 20, &scratch);
  ASSERT_THAT(result.top, SizeIs(20));
  double sum = 0;
  for (const TokenAlternative& alternative : result.top) sum += std::exp(alternative.logprob);
  EXPECT_NEAR(sum, 1, 1e-5);
}

TEST(LogprobOfTest, ImpossibleTokensAreNoAlternatives) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {-kInfinity, 0, -kInfinity};
  std::vector<Candidate> scratch;
  const TokenLogprob result = LogprobOf(logits, ReferenceSummary(logits), 0, 3, &scratch);
  EXPECT_EQ(result.logprob, -kInfinity);
  ASSERT_THAT(result.top, SizeIs(1));
  EXPECT_EQ(result.top[0].token, 1);
}

}  // namespace
}  // namespace marcoro
