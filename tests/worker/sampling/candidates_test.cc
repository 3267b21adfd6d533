#include "worker/sampling/candidates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<TokenId> SelectedTop(const std::vector<float>& logits, int32_t count) {
  std::vector<Candidate> candidates;
  SelectTop(logits, count, &candidates);
  std::sort(candidates.begin(), candidates.end(), RankedBefore());
  std::vector<TokenId> ids;
  for (const Candidate& candidate : candidates) {
    EXPECT_EQ(candidate.key, logits[candidate.id]);
    ids.push_back(candidate.id);
  }
  return ids;
}

// By a full sort.
std::vector<TokenId> SortedTop(const std::vector<float>& logits, int32_t count) {
  std::vector<TokenId> ids;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > -kInfinity) ids.push_back(static_cast<TokenId>(i));
  }
  std::sort(ids.begin(), ids.end(), [&](TokenId a, TokenId b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  ids.resize(std::min<size_t>(ids.size(), count));
  return ids;
}

TEST(SelectTopTest, TiesGoToTheLowerId) {
  EXPECT_THAT(SelectedTop({1, 3, 2, 3, 2, 2}, 3), ElementsAre(1, 3, 2));
  EXPECT_THAT(SelectedTop(std::vector<float>(1000, 7.0f), 3), ElementsAre(0, 1, 2));
}

TEST(SelectTopTest, LeavesOutWhatIsImpossible) {
  EXPECT_THAT(SelectedTop({-kInfinity, 1, -kInfinity, 0}, 3), ElementsAre(1, 3));
  EXPECT_THAT(SelectedTop({-kInfinity, -kInfinity}, 1), IsEmpty());
}

TEST(SelectTopTest, AgreesWithSortingForAllSizesAndManyTies) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<float> logits(1 + random() % 3000);
    const uint64_t values = 1 + random() % 200;
    for (float& logit : logits) {
      logit = random() % 50 == 0 ? -kInfinity : static_cast<float>(random() % values);
    }
    if (round % 3 == 0) std::sort(logits.begin(), logits.end());
    const auto count = static_cast<int32_t>(1 + random() % (logits.size() + 5));
    ASSERT_EQ(SelectedTop(logits, count), SortedTop(logits, count)) << "round " << round;
  }
}

TEST(SelectByWeightTest, FindsWhereTheSumPassesTheTarget) {
  // In the order: id 2 (weight 5), id 0 (3), id 1 (2).
  const std::vector<Candidate> candidates = {{.key = 2, .id = 0, .weight = 3},
                                             {.key = 2, .id = 1, .weight = 2},
                                             {.key = 9, .id = 2, .weight = 5}};
  const std::vector<TokenId> expected = {2, 2, 2, 2, 2, 0, 0, 0, 1, 1};
  for (uint64_t target = 0; target < expected.size(); ++target) {
    std::vector<Candidate> copy = candidates;
    EXPECT_EQ(copy[SelectByWeight(absl::MakeSpan(copy), target)].id, expected[target]) << target;
  }
}

TEST(SelectByWeightTest, AgreesWithSortingAndLeavesThePrefixInFront) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 300; ++round) {
    std::vector<Candidate> candidates(1 + random() % 500);
    for (size_t i = 0; i < candidates.size(); ++i) {
      candidates[i] = {.key = static_cast<float>(random() % 20),
                       .id = static_cast<TokenId>(i),
                       .weight = static_cast<uint32_t>(random() % 4)};
    }
    candidates[0].weight += 1;
    std::shuffle(candidates.begin(), candidates.end(), random);
    const uint64_t target = random() % TotalWeight(candidates);
    std::vector<Candidate> sorted = candidates;
    std::sort(sorted.begin(), sorted.end(), RankedBefore());
    size_t expected = 0;
    for (uint64_t sum = sorted[0].weight; sum <= target; sum += sorted[++expected].weight) {
    }
    const size_t index = SelectByWeight(absl::MakeSpan(candidates), target);
    ASSERT_EQ(index, expected);
    ASSERT_EQ(candidates[index].id, sorted[index].id);
    std::sort(candidates.begin(), candidates.begin() + index, RankedBefore());
    for (size_t i = 0; i < index; ++i) ASSERT_EQ(candidates[i].id, sorted[i].id);
  }
}

}  // namespace
}  // namespace marcoro
