#include "worker/scheduler/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

std::vector<BlockId> Blocks(const BlockTable& table) {
  return {table.blocks().begin(), table.blocks().end()};
}

TEST(BlocksForTest, RoundsUpToWholeBlocks) {
  EXPECT_EQ(BlocksFor(0), 0);
  EXPECT_EQ(BlocksFor(1), 1);
  EXPECT_EQ(BlocksFor(16), 1);
  EXPECT_EQ(BlocksFor(17), 2);
}

TEST(BlockPoolTest, HandsOutEveryBlockOnceAndThenNoMore) {
  BlockPool pool(3);
  BlockTable table(&pool);
  EXPECT_TRUE(table.AppendNew());
  EXPECT_TRUE(table.AppendNew());
  EXPECT_TRUE(table.AppendNew());
  EXPECT_THAT(Blocks(table), UnorderedElementsAre(0, 1, 2));
  EXPECT_EQ(pool.available(), 0);
  EXPECT_FALSE(table.AppendNew());
  EXPECT_EQ(table.size(), 3);
}

TEST(BlockPoolTest, TableGivesItsBlocksBackWhenDestroyed) {
  BlockPool pool(2);
  {
    BlockTable table(&pool);
    ASSERT_TRUE(table.AppendNew());
    EXPECT_EQ(pool.held(), 1);
  }
  EXPECT_EQ(pool.held(), 0);
  EXPECT_EQ(pool.available(), 2);
}

TEST(BlockPoolTest, MovedTableOwnsTheBlocks) {
  BlockPool pool(1);
  BlockTable first(&pool);
  ASSERT_TRUE(first.AppendNew());
  {
    BlockTable second(std::move(first));
    EXPECT_EQ(second.size(), 1);
    EXPECT_EQ(pool.held(), 1);
  }
  EXPECT_EQ(pool.held(), 0);
}

TEST(BlockPoolTest, SharedBlockIsHeldUntilItsLastHolderLetsGo) {
  BlockPool pool(1);
  BlockTable first(&pool);
  BlockTable second(&pool);
  ASSERT_TRUE(first.AppendNew());
  second.AppendShared(first[0]);
  first.Clear();
  EXPECT_EQ(pool.held(), 1);
  EXPECT_EQ(pool.available(), 0);
  second.Clear();
  EXPECT_EQ(pool.held(), 0);
  EXPECT_EQ(pool.available(), 1);
}

TEST(BlockPoolTest, CachedBlockThatNobodyHoldsIsAvailableAndCanBeHeldAgain) {
  BlockPool pool(1);
  BlockTable table(&pool);
  ASSERT_TRUE(table.AppendNew());
  const BlockId block = table[0];
  pool.SetCached(block, true);
  table.Clear();
  EXPECT_EQ(pool.available(), 1);
  table.AppendShared(block);
  EXPECT_EQ(pool.available(), 0);
  EXPECT_EQ(pool.held(), 1);
}

TEST(BlockPoolTest, FreeBlocksAreTakenBeforeCachedOnesAreEvicted) {
  BlockPool pool(2);
  std::vector<BlockId> evicted;
  pool.set_eviction_listener([&](BlockId block) { evicted.push_back(block); });
  BlockTable table(&pool);
  ASSERT_TRUE(table.AppendNew());
  const BlockId cached = table[0];
  pool.SetCached(cached, true);
  table.Clear();

  ASSERT_TRUE(table.AppendNew());
  EXPECT_NE(table[0], cached);
  EXPECT_THAT(evicted, IsEmpty());
  ASSERT_TRUE(table.AppendNew());
  EXPECT_EQ(table[1], cached);
  EXPECT_THAT(evicted, ElementsAre(cached));
}

TEST(BlockPoolTest, EvictsTheLeastRecentlyReleasedAndOfOneTableTheTailFirst) {
  BlockPool pool(4);
  std::vector<BlockId> evicted;
  pool.set_eviction_listener([&](BlockId block) { evicted.push_back(block); });
  BlockTable older(&pool);
  BlockTable newer(&pool);
  for (BlockTable* table : {&older, &newer}) {
    ASSERT_TRUE(table->AppendNew());
    ASSERT_TRUE(table->AppendNew());
    for (const BlockId block : table->blocks()) pool.SetCached(block, true);
  }
  const std::vector<BlockId> old_blocks = Blocks(older);
  const std::vector<BlockId> new_blocks = Blocks(newer);
  older.Clear();
  newer.Clear();
  // Touched again: now the most recent of all.
  {
    BlockTable touch(&pool);
    touch.AppendShared(old_blocks[0]);
  }
  BlockTable table(&pool);
  while (table.AppendNew()) {
  }
  EXPECT_THAT(evicted, ElementsAre(old_blocks[1], new_blocks[1], new_blocks[0], old_blocks[0]));
}

TEST(BlockPoolTest, BlockThatIsNoLongerCachedIsSimplyFree) {
  BlockPool pool(1);
  std::vector<BlockId> evicted;
  pool.set_eviction_listener([&](BlockId block) { evicted.push_back(block); });
  BlockTable table(&pool);
  ASSERT_TRUE(table.AppendNew());
  const BlockId block = table[0];
  pool.SetCached(block, true);
  table.Clear();
  pool.SetCached(block, false);
  EXPECT_EQ(pool.available(), 1);
  EXPECT_TRUE(table.AppendNew());
  EXPECT_THAT(evicted, IsEmpty());
}

TEST(BlockPoolTest, TaintedBlockIsNotAvailableUntilItIsTaken) {
  BlockPool pool(1);
  BlockTable first(&pool);
  BlockTable second(&pool);
  ASSERT_TRUE(first.AppendNew());
  const BlockId block = first[0];
  second.AppendShared(block);
  pool.Taint(block);
  std::vector<BlockId> to_zero;
  first.Clear();
  pool.TakeTainted(&to_zero);
  EXPECT_THAT(to_zero, IsEmpty()) << "the second table still holds it";

  second.Clear();
  EXPECT_EQ(pool.available(), 0);
  pool.TakeTainted(&to_zero);
  EXPECT_THAT(to_zero, ElementsAre(block));
  EXPECT_EQ(pool.available(), 1);
  to_zero.clear();
  pool.TakeTainted(&to_zero);
  EXPECT_THAT(to_zero, IsEmpty());
}

TEST(BlockTableTest, ReplaceExchangesOneReference) {
  BlockPool pool(2);
  BlockTable first(&pool);
  BlockTable second(&pool);
  ASSERT_TRUE(first.AppendNew());
  ASSERT_TRUE(second.AppendNew());
  second.Replace(0, first[0]);
  EXPECT_EQ(second[0], first[0]);
  EXPECT_EQ(pool.held(), 1);
  first.Clear();
  EXPECT_EQ(pool.held(), 1);
}

TEST(BlockPoolDeathTest, ReleasedTwiceOrTaintedUnheldIsABug) {
  BlockPool pool(1);
  EXPECT_DEATH(pool.Taint(0), "check failed");
  EXPECT_DEATH(pool.SetCached(0, true), "check failed");
  BlockTable table(&pool);
  EXPECT_DEATH(table.AppendShared(0), "check failed") << "neither held nor cached";
}

}  // namespace
}  // namespace marcoro
