#include "worker/collective/tree_sum.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/worker/collective/ranks.h"

namespace marcoro {
namespace {

std::vector<const float*> Pointers(const std::vector<std::vector<float>>& inputs) {
  std::vector<const float*> pointers;
  for (const std::vector<float>& input : inputs) pointers.push_back(input.data());
  return pointers;
}

TEST(TreeSum, AddsNeighboursBeforeTheirSums) {
  // 2^24 + 1 rounds to 2^24: from left to right the three ones would get lost, 2^24; as a tree 1 +
  // 1 survives.
  const float big = 16777216.0f;
  const std::vector<std::vector<float>> inputs = {{big}, {1}, {1}, {1}};
  std::vector<float> sum(1);
  TreeSum(Pointers(inputs), 1, sum.data());
  EXPECT_EQ(sum[0], big + 2);
  EXPECT_EQ(((big + 1) + 1) + 1, big);
}

class TreeSumOf : public testing::TestWithParam<int> {};

TEST_P(TreeSumOf, MatchesTheRecursiveSumAtEverySizeOfTheTail) {
  for (size_t count = 0; count <= 50; ++count) {
    std::vector<std::vector<float>> inputs;
    for (int rank = 0; rank < GetParam(); ++rank) inputs.push_back(PartialSums(rank, count));
    std::vector<float> sum(count, -1);
    TreeSum(Pointers(inputs), count, sum.data());
    EXPECT_EQ(FirstDifference(sum, ExpectedTreeSum(0, GetParam(), count)), -1) << count;
  }
}

TEST_P(TreeSumOf, MayOverwriteAnyInput) {
  const size_t count = 77;
  for (int target = 0; target < GetParam(); ++target) {
    std::vector<std::vector<float>> inputs;
    for (int rank = 0; rank < GetParam(); ++rank) inputs.push_back(PartialSums(rank, count));
    std::vector<float>& sum = inputs[static_cast<size_t>(target)];
    TreeSum(Pointers(inputs), count, sum.data());
    EXPECT_EQ(FirstDifference(sum, ExpectedTreeSum(0, GetParam(), count)), -1) << target;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, TreeSumOf, testing::Values(1, 2, 4, 8));

// Without this the tests of the communicators could not tell a tree from another order.
TEST(PartialSums, GiveOtherBitsWhenAddedFromLeftToRight) {
  const size_t count = 4096;
  std::vector<float> sum = PartialSums(0, count);
  for (int rank = 1; rank < 4; ++rank) {
    const std::vector<float> next = PartialSums(rank, count);
    for (size_t i = 0; i < count; ++i) sum[i] += next[i];
  }
  const std::vector<float> tree = ExpectedTreeSum(0, 4, count);
  size_t different = 0;
  for (size_t i = 0; i < count; ++i) different += sum[i] != tree[i];
  EXPECT_GT(different, count / 20);
}

TEST(TreeSumDeathTest, RefusesOtherNumbersOfInputs) {
  const std::vector<std::vector<float>> inputs(3, std::vector<float>(1));
  float sum;
  EXPECT_DEATH(TreeSum(Pointers(inputs), 1, &sum), "balanced tree");
}

}  // namespace
}  // namespace marcoro
