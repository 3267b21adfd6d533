#include "coordinator/routing/policy.h"

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<Policy> Make(absl::string_view name) { return MakePolicy(name).value(); }

// Replicas with these loads; key and ordinal differ from index.
std::vector<ReplicaLoad> Loads(const std::vector<uint64_t>& sequences) {
  std::vector<ReplicaLoad> loads;
  for (size_t i = 0; i < sequences.size(); ++i) {
    loads.push_back({.key = 1000003 * (i + 1), .ordinal = 10 * (i + 1), .sequences = sequences[i]});
  }
  return loads;
}

TEST(Policy, AnUnknownNameIsAnErrorThatNamesTheKnown) {
  const absl::Status status = MakePolicy("fastest").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("fastest"), HasSubstr("least_loaded"), HasSubstr("prefix_affinity"),
                    HasSubstr("round_robin")));
}

TEST(Policy, NamesAreInAlphabeticalOrder) {
  EXPECT_THAT(PolicyNames(), ElementsAre("least_loaded", "prefix_affinity", "round_robin"));
}

TEST(LeastLoadedPolicy, TakesTheFewestSequencesAndTheFirstAmongEquals) {
  const std::unique_ptr<Policy> policy = Make("least_loaded");
  EXPECT_EQ(policy->Pick(Loads({5, 3, 4}), 0), 1u);
  EXPECT_EQ(policy->Pick(Loads({5, 3, 3}), 77), 1u);
  EXPECT_EQ(policy->Pick(Loads({0}), 0), 0u);
}

TEST(RoundRobinPolicy, TakesTurnsWhateverTheLoad) {
  const std::unique_ptr<Policy> policy = Make("round_robin");
  const std::vector<ReplicaLoad> loads = Loads({9, 0, 5});
  std::vector<size_t> turns;
  for (int i = 0; i < 7; ++i) turns.push_back(policy->Pick(loads, 0));
  EXPECT_THAT(turns, ElementsAre(0, 1, 2, 0, 1, 2, 0));
}

TEST(RoundRobinPolicy, GoesOnWhenReplicasComeAndGo) {
  const std::unique_ptr<Policy> policy = Make("round_robin");
  const std::vector<ReplicaLoad> all = Loads({0, 0, 0});
  EXPECT_EQ(policy->Pick(all, 0), 0u);
  // The second is gone: the third has its turn, at index 1.
  EXPECT_EQ(policy->Pick(std::vector<ReplicaLoad>{all[0], all[2]}, 0), 1u);
  EXPECT_EQ(policy->Pick(all, 0), 0u);
}

TEST(PrefixAffinityPolicy, EqualAffinityGoesToTheSameReplica) {
  const std::unique_ptr<Policy> policy = Make("prefix_affinity");
  const std::vector<ReplicaLoad> loads = Loads({0, 0, 0, 0});
  for (uint64_t affinity = 1; affinity <= 50; ++affinity) {
    EXPECT_EQ(policy->Pick(loads, affinity), policy->Pick(loads, affinity));
  }
}

TEST(PrefixAffinityPolicy, SpreadsAffinitiesEvenly) {
  const std::unique_ptr<Policy> policy = Make("prefix_affinity");
  const std::vector<ReplicaLoad> loads = Loads({0, 0, 0, 0});
  std::map<size_t, int> counts;
  for (uint64_t affinity = 1; affinity <= 4000; ++affinity) ++counts[policy->Pick(loads, affinity)];
  // 1000 each, give or take five standard deviations (27 each).
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(counts[i], 1000, 137) << i;
}

TEST(PrefixAffinityPolicy, ALostReplicaMovesOnlyItsOwn) {
  const std::unique_ptr<Policy> policy = Make("prefix_affinity");
  const std::vector<ReplicaLoad> all = Loads({0, 0, 0, 0});
  const std::vector<ReplicaLoad> without_last(all.begin(), all.end() - 1);
  for (uint64_t affinity = 1; affinity <= 200; ++affinity) {
    const size_t before = policy->Pick(all, affinity);
    if (before == 3) continue;
    EXPECT_EQ(policy->Pick(without_last, affinity), before);
  }
}

TEST(PrefixAffinityPolicy, OverloadGoesToTheLeastLoaded) {
  const std::unique_ptr<Policy> policy = Make("prefix_affinity");
  const size_t home = policy->Pick(Loads({0, 0, 0}), 42);
  const size_t idle = (home + 1) % 3;
  std::vector<uint64_t> sequences(3, 2);
  sequences[idle] = 0;
  // Bound with 1 + 4 + x sequences on three: 1.25 · (5 + x) / 3 + 4 ≥ x + 1 up to x = 8.
  sequences[home] = 8;
  EXPECT_EQ(policy->Pick(Loads(sequences), 42), idle);
  sequences[home] = 2;
  EXPECT_EQ(policy->Pick(Loads(sequences), 42), home);
}

TEST(PrefixAffinityPolicy, WithoutAffinityTheLeastLoaded) {
  const std::unique_ptr<Policy> policy = Make("prefix_affinity");
  EXPECT_EQ(policy->Pick(Loads({3, 1, 2}), 0), 1u);
}

}  // namespace
}  // namespace marcoro
