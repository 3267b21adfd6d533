// Tokens that come one step late.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "tests/worker/scheduler/scheduler_testing.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Commits a step whose every token is late.
void CommitLate(Scheduler& scheduler, const StepPlan& plan) {
  std::vector<SampledToken> late;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    if (scheduler.outputs()[i].samples) late.push_back({plan.sequences[i].id, kLateToken});
  }
  scheduler.Commit(late);
}

std::vector<std::pair<int32_t, SequenceId>> LateOf(const StepPlan& plan) {
  std::vector<std::pair<int32_t, SequenceId>> late;
  for (const LateEntry& entry : plan.late) late.emplace_back(entry.index, entry.id);
  return late;
}

TEST(SchedulerLateTest, AZeroStandsForALateTokenAndThePlanSaysWhose) {
  Scheduler scheduler({.kv_blocks = 10});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(3), 9)).ok());
  CommitLate(scheduler, scheduler.Schedule(kNow));
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(4, 11), 9)).ok());
  const StepPlan& second = scheduler.Schedule(kNow);
  EXPECT_THAT(Ids(second), ElementsAre(1, 2));
  EXPECT_THAT(second.tokens, ElementsAre(0, 11, 12, 13, 14));
  EXPECT_THAT(LateOf(second), ElementsAre(std::make_pair(0, 1)));
  CommitLate(scheduler, second);
  scheduler.Resolve({{1, 70}});
  EXPECT_THAT(scheduler.Find(1)->tokens, ElementsAre(1, 2, 3, 70, kLateToken));

  const StepPlan& third = scheduler.Schedule(kNow);
  EXPECT_THAT(LateOf(third), ElementsAre(std::make_pair(0, 1), std::make_pair(1, 2)));
  scheduler.Resolve({{1, 71}, {2, 80}});  // before the step is committed
  scheduler.Commit({{1, 72}, {2, 81}});   // in time
  EXPECT_THAT(scheduler.Find(1)->tokens, ElementsAre(1, 2, 3, 70, 71, 72));
  EXPECT_THAT(scheduler.Schedule(kNow).late, IsEmpty());
}

TEST(SchedulerLateTest, ASequenceThatHasAllItsTokensWaitsForThem) {
  Scheduler scheduler({.kv_blocks = 10});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(3), 2)).ok());
  CommitLate(scheduler, scheduler.Schedule(kNow));
  CommitLate(scheduler, scheduler.Schedule(kNow));
  scheduler.Resolve({{1, 70}});
  EXPECT_TRUE(scheduler.Schedule(kNow).empty()) << "nothing before the second token is known";
  scheduler.Resolve({{1, 71}});
  EXPECT_THAT(scheduler.Find(1)->tokens, ElementsAre(1, 2, 3, 70, 71));
  EXPECT_TRUE(scheduler.Finish(1));
  EXPECT_TRUE(scheduler.idle());
}

TEST(SchedulerLateTest, WhatEndedMeanwhileIsIgnored) {
  Scheduler scheduler({.kv_blocks = 10});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(3), 9)).ok());
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(3), 9)).ok());
  CommitLate(scheduler, scheduler.Schedule(kNow));
  CommitLate(scheduler, scheduler.Schedule(kNow));
  scheduler.Resolve({{1, 70}, {2, 80}});
  EXPECT_TRUE(scheduler.Finish(1));  // 70 was a stop token
  EXPECT_THAT(Ids(scheduler.Schedule(kNow)), ElementsAre(2));
  scheduler.Resolve({{1, 71}, {2, 81}});
  EXPECT_THAT(scheduler.Find(2)->tokens, ElementsAre(1, 2, 3, 80, 81));
}

// Both begin with one block each; the third block goes to sequence 1, and 2 would need a fourth.
TEST(SchedulerLateTest, NobodyIsPreemptedBeforeItsTokensAreKnown) {
  Scheduler scheduler({.kv_blocks = 3, .prefix_cache = false});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(15, 100), 20)).ok());
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(14, 200), 20)).ok());
  CommitLate(scheduler, scheduler.Schedule(kNow));
  for (int step = 0; step < 2; ++step) {
    CommitLate(scheduler, scheduler.Schedule(kNow));
    scheduler.Resolve({{1, 70}, {2, 80}});
  }
  EXPECT_TRUE(scheduler.Schedule(kNow).empty());
  EXPECT_EQ(scheduler.counters().preemptions, 0u);
  scheduler.Resolve({{1, 71}, {2, 81}});
  EXPECT_THAT(Ids(scheduler.Schedule(kNow)), ElementsAre(1));
  EXPECT_EQ(scheduler.counters().preemptions, 1u);
  EXPECT_EQ(scheduler.Find(2)->late_tokens, 0);
}

TEST(SchedulerLateTest, ABlockIsFoundByOthersOnceItsStepHasBeenLookedAt) {
  Scheduler scheduler({.kv_blocks = 20});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(16), 9)).ok());
  CommitLate(scheduler, scheduler.Schedule(kNow));
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(17), 9)).ok());
  const StepPlan& second = scheduler.Schedule(kNow);
  EXPECT_EQ(scheduler.outputs()[1].cached_tokens, 0);
  CommitLate(scheduler, second);
  scheduler.Resolve({{1, 70}});
  ASSERT_TRUE(scheduler.Add(Request(3, Prompt(17), 9)).ok());
  scheduler.Schedule(kNow);
  EXPECT_EQ(scheduler.outputs()[2].cached_tokens, 16);
}

}  // namespace
}  // namespace marcoro
