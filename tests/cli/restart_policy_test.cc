#include "deploy/cli/restart_policy.h"

#include <gtest/gtest.h>

namespace marcoro {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

TEST(RestartPolicyTest, APartThatWasNeverReadyIsGivenUpAtOnce) {
  RestartPolicy policy;
  EXPECT_FALSE(policy.Failed(kStart).has_value());
}

TEST(RestartPolicyTest, APartThatWasReadyIsStartedAgainSoon) {
  RestartPolicy policy;
  policy.Ready();
  EXPECT_EQ(policy.Failed(kStart), absl::Milliseconds(200));
}

TEST(RestartPolicyTest, DelaysDoubleToFiveSecondsWithFailuresWithinAMinute) {
  RestartPolicy policy;
  for (const int milliseconds : {200, 400, 800, 1600, 3200, 5000, 5000}) {
    policy.Ready();
    EXPECT_EQ(policy.Failed(kStart), absl::Milliseconds(milliseconds));
  }
}

TEST(RestartPolicyTest, AFailureLongAgoDoesNotCount) {
  RestartPolicy policy;
  policy.Ready();
  policy.Failed(kStart);
  policy.Ready();
  EXPECT_EQ(policy.Failed(kStart + absl::Seconds(61)), absl::Milliseconds(200));
}

TEST(RestartPolicyTest, FiveFailuresWithoutGettingReadyEndIt) {
  RestartPolicy policy;
  policy.Ready();
  for (int failure = 1; failure <= 4; ++failure) {
    EXPECT_TRUE(policy.Failed(kStart + failure * absl::Minutes(2)).has_value()) << failure;
  }
  EXPECT_FALSE(policy.Failed(kStart + absl::Minutes(10)).has_value());
}

TEST(RestartPolicyTest, GettingReadyInBetweenStartsTheCountAgain) {
  RestartPolicy policy;
  for (int failure = 0; failure < 20; ++failure) {
    policy.Ready();
    EXPECT_TRUE(policy.Failed(kStart + failure * absl::Minutes(2)).has_value()) << failure;
  }
}

}  // namespace
}  // namespace marcoro
