// KV blocks: sharing, preemption, zeroing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/worker/scheduler/scheduler_testing.h"
#include "worker/scheduler/scheduler.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAreArray;

TEST(SchedulerMemoryTest, TheFirstThatWaitsForBlocksIsNotOvertaken) {
  Scheduler scheduler({.kv_blocks = 4, .prefix_cache = false});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(33), 10)).ok());
  RunStep(scheduler);
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(33), 1)).ok());
  ASSERT_TRUE(scheduler.Add(Request(3, Prompt(1), 1)).ok());  // would fit
  EXPECT_THAT(RunStep(scheduler), ElementsAre(1));
  scheduler.Finish(1);
  EXPECT_THAT(RunStep(scheduler), ElementsAre(2, 3));
}

TEST(SchedulerMemoryTest, LeavesABlockForEachRunningSequenceThatGrows) {
  Scheduler scheduler({.kv_blocks = 3, .prefix_cache = false});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(16), 10)).ok());  // one block now, another soon
  RunStep(scheduler);
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(17), 1)).ok());
  EXPECT_THAT(RunStep(scheduler), ElementsAre(1));
  EXPECT_EQ(scheduler.counters().preemptions, 0u);
  scheduler.Finish(1);
  EXPECT_THAT(RunStep(scheduler), ElementsAre(2));
}

TEST(SchedulerMemoryTest, EqualPromptsAreComputedOnceButForTheLastToken) {
  Scheduler scheduler({.kv_blocks = 20});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(48), 2)).ok());
  const StepPlan* plan = &scheduler.Schedule(kNow);
  const std::vector<BlockId> first_blocks = plan->blocks;
  Commit(scheduler, *plan);
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(48), 2)).ok());

  plan = &scheduler.Schedule(kNow);
  ASSERT_THAT(Ids(*plan), ElementsAre(1, 2));
  EXPECT_EQ(plan->sequences[1].position, 32) << "the last token's logits have to be computed";
  EXPECT_EQ(scheduler.outputs()[1].cached_tokens, 32);
  const BlockId* blocks = plan->blocks.data() + plan->sequences[0].block_count;
  EXPECT_EQ(blocks[0], first_blocks[0]);
  EXPECT_EQ(blocks[1], first_blocks[1]);
  EXPECT_NE(blocks[2], first_blocks[2]);
  EXPECT_EQ(scheduler.counters().prefix_query_tokens, 96u);
  EXPECT_EQ(scheduler.counters().prefix_hit_tokens, 32u);
  Commit(scheduler, *plan);
}

TEST(SchedulerMemoryTest, BlocksOfARunningStepAreNotSharedYet) {
  Scheduler scheduler({.kv_blocks = 20});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(48), 2)).ok());
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(48), 2)).ok());
  const StepPlan& plan = scheduler.Schedule(kNow);
  EXPECT_THAT(TokenCounts(plan), ElementsAre(48, 48));
  Commit(scheduler, plan);
  EXPECT_EQ(scheduler.counters().kv_blocks_used, 3) << "equal blocks become one at Commit";
}

TEST(SchedulerMemoryTest, FinishedSequencesStayInTheCache) {
  Scheduler scheduler({.kv_blocks = 20});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(17), 2)).ok());
  RunStep(scheduler);
  scheduler.Finish(1);
  EXPECT_EQ(scheduler.counters().kv_blocks_used, 0);
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(17), 2)).ok());
  EXPECT_EQ(scheduler.Schedule(kNow).sequences[0].position, 16);
}

TEST(SchedulerMemoryTest, GeneratedTokensAreCachedToo) {
  Scheduler scheduler({.kv_blocks = 20});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(15), 3)).ok());
  for (int i = 0; i < 3; ++i) RunStep(scheduler);
  scheduler.Finish(1);
  std::vector<TokenId> next_turn = Prompt(15);
  next_turn.insert(next_turn.end(), {kSampled, kSampled, kSampled, 3});
  ASSERT_TRUE(scheduler.Add(Request(2, next_turn, 1)).ok());
  EXPECT_EQ(scheduler.Schedule(kNow).sequences[0].position, 16);
}

TEST(SchedulerMemoryTest, SaltsAndASwitchKeepCachesApart) {
  for (const bool prefix_cache : {true, false}) {
    Scheduler scheduler({.kv_blocks = 20, .prefix_cache = prefix_cache});
    NewSequence request = Request(1, Prompt(33), 1);
    request.cache_salt = 5;
    ASSERT_TRUE(scheduler.Add(request).ok());
    RunStep(scheduler);
    scheduler.Finish(1);
    request.cache_salt = prefix_cache ? 6 : 5;
    ASSERT_TRUE(scheduler.Add(request).ok());
    EXPECT_EQ(scheduler.Schedule(kNow).sequences[0].position, 0);
    EXPECT_EQ(scheduler.counters().prefix_hit_tokens, 0u);
  }
}

TEST(SchedulerMemoryTest, WhenBlocksRunOutTheLastInTheOrderStartsAgainLater) {
  // Both begin with one block each; the third block goes to sequence 1, so that 2 gives its own
  // back.
  Scheduler scheduler({.kv_blocks = 3, .prefix_cache = false});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(15, 100), 20)).ok());
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(14, 200), 20)).ok());
  EXPECT_THAT(RunStep(scheduler), ElementsAre(1, 2));
  EXPECT_THAT(RunStep(scheduler), ElementsAre(1, 2));
  EXPECT_THAT(RunStep(scheduler), ElementsAre(1, 2));  // 1 takes the third block
  EXPECT_THAT(RunStep(scheduler), ElementsAre(1));     // 2 needs a fourth
  EXPECT_EQ(scheduler.counters().preemptions, 1u);
  EXPECT_EQ(scheduler.counters().waiting, 1);
  while (scheduler.Find(1)->generated_tokens() < 20)
    EXPECT_THAT(RunStep(scheduler), ElementsAre(1));
  scheduler.Finish(1);

  const StepPlan& plan = scheduler.Schedule(kNow);
  ASSERT_THAT(Ids(plan), ElementsAre(2));
  EXPECT_EQ(plan.sequences[0].position, 0);
  EXPECT_EQ(plan.sequences[0].token_count, 17) << "prompt and generated tokens";
  EXPECT_FALSE(scheduler.outputs()[0].begins);
  Commit(scheduler, plan);
  EXPECT_EQ(scheduler.Find(2)->generated_tokens(), 4);
}

TEST(SchedulerMemoryTest, PreemptionTakesFromTheLowerPriority) {
  Scheduler scheduler({.kv_blocks = 3, .prefix_cache = false});
  NewSequence low = Request(1, Prompt(15, 100), 20);
  low.priority = -1;
  ASSERT_TRUE(scheduler.Add(std::move(low)).ok());
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(14, 200), 20)).ok());
  std::vector<SequenceId> ids;
  while (scheduler.counters().preemptions == 0) ids = RunStep(scheduler);
  EXPECT_THAT(ids, ElementsAre(2));
}

TEST(SchedulerMemoryTest, ALoneSequenceFillsThePoolToTheLastPosition) {
  Scheduler scheduler({.kv_blocks = 4});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(10), 55)).ok());
  while (scheduler.Find(1)->generated_tokens() < 55) EXPECT_THAT(RunStep(scheduler), SizeIs(1));
  EXPECT_EQ(scheduler.counters().kv_blocks_used, 4);
  EXPECT_EQ(scheduler.counters().preemptions, 0u);
}

TEST(SchedulerMemoryTest, PoisonedBlocksAreZeroedBeforeTheyAreUsedAndNeverFound) {
  Scheduler scheduler({.kv_blocks = 3});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(40), 2)).ok());
  RunStep(scheduler);  // its full blocks are in the cache now
  const StepPlan* plan = &scheduler.Schedule(kNow);
  const std::vector<BlockId> blocks = plan->blocks;
  EXPECT_TRUE(scheduler.Poison(1));
  EXPECT_FALSE(scheduler.Poison(1));
  scheduler.Commit({});

  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(40), 2)).ok());
  plan = &scheduler.Schedule(kNow);
  EXPECT_THAT(plan->blocks_to_zero, UnorderedElementsAreArray(blocks));
  ASSERT_THAT(Ids(*plan), ElementsAre(2));
  EXPECT_EQ(plan->sequences[0].position, 0);
  Commit(scheduler, *plan);
  EXPECT_THAT(scheduler.Schedule(kNow).blocks_to_zero, IsEmpty());
}

TEST(SchedulerMemoryTest, BlocksAreZeroedEvenIfNothingRuns) {
  Scheduler scheduler({.kv_blocks = 3});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(17), 2)).ok());
  scheduler.Schedule(kNow);
  scheduler.Poison(1);
  scheduler.Commit({});
  EXPECT_TRUE(scheduler.idle());
  const StepPlan& plan = scheduler.Schedule(kNow);
  EXPECT_THAT(plan.sequences, IsEmpty());
  EXPECT_THAT(plan.blocks_to_zero, SizeIs(2));
  scheduler.Commit({});
  EXPECT_TRUE(scheduler.Schedule(kNow).empty());
}

TEST(SchedulerMemoryTest, APoisonedBlockThatAnotherReadsIsZeroedWhenThatOneEnds) {
  Scheduler scheduler({.kv_blocks = 8});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(20), 4)).ok());
  RunStep(scheduler);
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(20), 4)).ok());
  const StepPlan* plan = &scheduler.Schedule(kNow);
  const BlockId shared = plan->blocks[0];
  const BlockId own = plan->blocks[1];
  scheduler.Poison(1);
  const std::vector<SampledToken> sampled = {{2, kSampled}};
  scheduler.Commit(sampled);

  plan = &scheduler.Schedule(kNow);
  EXPECT_THAT(plan->blocks_to_zero, ElementsAre(own));
  EXPECT_THAT(Ids(*plan), ElementsAre(2));
  EXPECT_EQ(plan->blocks[0], shared);
  Commit(scheduler, *plan);
  scheduler.Finish(2);
  EXPECT_THAT(scheduler.Schedule(kNow).blocks_to_zero, ElementsAre(shared));
  scheduler.Commit({});
}

}  // namespace
}  // namespace marcoro
