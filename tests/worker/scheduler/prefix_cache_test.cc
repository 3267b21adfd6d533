#include "worker/scheduler/prefix_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

std::vector<BlockId> Blocks(const BlockTable& table) {
  return {table.blocks().begin(), table.blocks().end()};
}

// `blocks` blocks of tokens, each filled with its value.
std::vector<TokenId> Tokens(std::vector<TokenId> blocks) {
  std::vector<TokenId> tokens;
  for (const TokenId value : blocks) tokens.insert(tokens.end(), kBlockTokens, value);
  return tokens;
}

// Every test runs with a good hash table and with one whose keys all collide.
class PrefixCacheTest : public ::testing::TestWithParam<int32_t> {
 protected:
  // A table with enough new blocks for the tokens, published.
  BlockTable Published(const std::vector<TokenId>& tokens, uint64_t salt = 0) {
    BlockTable table(&pool_);
    for (size_t i = 0; i < tokens.size() / kBlockTokens; ++i) EXPECT_TRUE(table.AppendNew());
    cache_.Publish(salt, tokens, 0, &table);
    return table;
  }

  int32_t Matched(const std::vector<TokenId>& tokens, uint64_t salt = 0) {
    BlockTable table(&pool_);
    return cache_.Match(salt, tokens, &table);
  }

  BlockPool pool_{8};
  PrefixCache cache_{&pool_, GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Buckets, PrefixCacheTest, ::testing::Values(0, 1), [](const auto& param) {
  return param.param == 1 ? "AllCollide" : "Default";
});

TEST_P(PrefixCacheTest, FindsTheLongestPublishedPrefix) {
  const BlockTable table = Published(Tokens({1, 2, 3}));
  BlockTable found(&pool_);
  EXPECT_EQ(cache_.Match(0, Tokens({1, 2, 4}), &found), 2 * kBlockTokens);
  EXPECT_THAT(Blocks(found), ElementsAre(table[0], table[1]));
}

TEST_P(PrefixCacheTest, MatchesWholeBlocksOnly) {
  const BlockTable table = Published(Tokens({1, 2}));
  std::vector<TokenId> tokens = Tokens({1, 2});
  tokens.pop_back();
  EXPECT_EQ(Matched(tokens), kBlockTokens);
  tokens = Tokens({1});
  tokens[15] = 9;
  EXPECT_EQ(Matched(tokens), 0);
}

TEST_P(PrefixCacheTest, EqualTokensAfterAnotherPrefixAreAnotherBlock) {
  const BlockTable table = Published(Tokens({1, 2}));
  EXPECT_EQ(Matched(Tokens({2})), 0);
  EXPECT_EQ(Matched(Tokens({3, 2})), 0);
}

TEST_P(PrefixCacheTest, SaltsShareNothing) {
  const BlockTable table = Published(Tokens({1, 2}), /*salt=*/5);
  EXPECT_EQ(Matched(Tokens({1, 2}), /*salt=*/6), 0);
  EXPECT_EQ(Matched(Tokens({1, 2}), /*salt=*/5), 2 * kBlockTokens);
}

TEST_P(PrefixCacheTest, BlocksOutliveTheirHoldersUntilTheyAreEvicted) {
  Published(Tokens({1, 2})).Clear();
  EXPECT_EQ(pool_.held(), 0);
  EXPECT_EQ(Matched(Tokens({1, 2})), 2 * kBlockTokens);

  BlockTable other(&pool_);
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(other.AppendNew());  // 6 were free
  EXPECT_EQ(Matched(Tokens({1, 2})), kBlockTokens) << "the tail goes first";
  ASSERT_TRUE(other.AppendNew());
  EXPECT_EQ(Matched(Tokens({1, 2})), 0);
}

TEST_P(PrefixCacheTest, AContinuationIsNotFoundThroughARecomputedPrefixOfOtherTokens) {
  // Block b of prefix {1} is evicted and used again for {7}; what continued {1} must not be found
  // after {7}.
  BlockTable held(&pool_);
  Published(Tokens({1, 2})).Clear();
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(held.AppendNew());
  held.Clear();
  const BlockTable other = Published(Tokens({7}));
  EXPECT_EQ(Matched(Tokens({7, 2})), kBlockTokens);
  EXPECT_EQ(Matched(Tokens({1, 2})), 0);
}

TEST_P(PrefixCacheTest, ADuplicateIsExchangedForThePublishedBlock) {
  const BlockTable first = Published(Tokens({1, 2}));
  EXPECT_EQ(pool_.held(), 2);
  const BlockTable second = Published(Tokens({1, 2, 3}));
  EXPECT_THAT(Blocks(second), ElementsAre(first[0], first[1], second[2]));
  EXPECT_EQ(pool_.held(), 3);
}

TEST_P(PrefixCacheTest, PublishesAsBlocksFill) {
  BlockTable table(&pool_);
  ASSERT_TRUE(table.AppendNew());
  ASSERT_TRUE(table.AppendNew());
  EXPECT_EQ(cache_.Publish(0, Tokens({1}), 0, &table), 1);
  EXPECT_EQ(Matched(Tokens({1, 2})), kBlockTokens);
  EXPECT_EQ(cache_.Publish(0, Tokens({1, 2}), 1, &table), 2);
  EXPECT_EQ(Matched(Tokens({1, 2})), 2 * kBlockTokens);
}

TEST_P(PrefixCacheTest, WithdrawnBlocksAndTheirContinuationsAreFoundNoMore) {
  BlockTable table = Published(Tokens({1, 2, 3}));
  cache_.Withdraw(table[1]);
  EXPECT_EQ(Matched(Tokens({1, 2, 3})), kBlockTokens);
  cache_.Withdraw(table[1]);  // nothing more to withdraw
  table.Clear();
  EXPECT_EQ(pool_.available(), 8);
}

TEST_P(PrefixCacheTest, NothingIsPublishedBehindAWithdrawnBlock) {
  BlockTable table = Published(Tokens({1, 2}));
  cache_.Withdraw(table[1]);
  ASSERT_TRUE(table.AppendNew());
  EXPECT_EQ(cache_.Publish(0, Tokens({1, 2, 3}), 2, &table), 2);
  EXPECT_EQ(Matched(Tokens({1, 2, 3})), kBlockTokens);
}

TEST_P(PrefixCacheTest, ManyBlocksInOneBucketAreToldApart) {
  std::vector<BlockTable> tables;
  for (TokenId value = 0; value < 8; ++value) tables.push_back(Published(Tokens({value})));
  for (TokenId value = 0; value < 8; ++value) {
    BlockTable found(&pool_);
    cache_.Match(0, Tokens({value}), &found);
    EXPECT_THAT(Blocks(found), ElementsAreArray(tables[value].blocks())) << value;
  }
  for (const TokenId value : {3, 0, 7}) cache_.Withdraw(tables[value][0]);
  for (TokenId value = 0; value < 8; ++value) {
    const bool withdrawn = value == 3 || value == 0 || value == 7;
    EXPECT_EQ(Matched(Tokens({value})), withdrawn ? 0 : kBlockTokens) << value;
  }
}

}  // namespace
}  // namespace marcoro
