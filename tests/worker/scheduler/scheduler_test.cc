// Order, budgets, deadlines and logits.
#include "worker/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/worker/scheduler/scheduler_testing.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(SchedulerTest, WithNothingToDoThePlanIsEmpty) {
  Scheduler scheduler({.kv_blocks = 4});
  EXPECT_TRUE(scheduler.idle());
  EXPECT_TRUE(scheduler.Schedule(kNow).empty());
  EXPECT_TRUE(scheduler.Schedule(kNow).empty()) << "an empty plan needs no Commit";
}

TEST(SchedulerTest, PromptThenOneTokenAStep) {
  Scheduler scheduler({.kv_blocks = 4});
  ASSERT_TRUE(scheduler.Add(Request(7, Prompt(20), 3)).ok());

  const StepPlan* plan = &scheduler.Schedule(kNow);
  ASSERT_THAT(plan->sequences, SizeIs(1));
  EXPECT_EQ(plan->sequences[0].id, 7u);
  EXPECT_EQ(plan->sequences[0].position, 0);
  EXPECT_EQ(plan->sequences[0].token_count, 20);
  EXPECT_EQ(plan->sequences[0].block_count, 2);
  EXPECT_EQ(plan->sequences[0].logit_rows, 1);
  EXPECT_EQ(plan->tokens, Prompt(20));
  EXPECT_THAT(plan->blocks, SizeIs(2));
  EXPECT_TRUE(scheduler.outputs()[0].samples);
  EXPECT_TRUE(scheduler.outputs()[0].begins);
  EXPECT_EQ(scheduler.outputs()[0].cached_tokens, 0);
  Commit(scheduler, *plan);

  plan = &scheduler.Schedule(kNow);
  ASSERT_THAT(plan->sequences, SizeIs(1));
  EXPECT_EQ(plan->sequences[0].position, 20);
  EXPECT_EQ(plan->sequences[0].token_count, 1);
  EXPECT_THAT(plan->tokens, ElementsAre(kSampled));
  EXPECT_FALSE(scheduler.outputs()[0].begins);
  Commit(scheduler, *plan);
  RunStep(scheduler);

  EXPECT_EQ(scheduler.Find(7)->generated_tokens(), 3);
  EXPECT_TRUE(scheduler.Finish(7));
  EXPECT_FALSE(scheduler.Finish(7));
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(scheduler.counters().kv_blocks_used, 0);
}

TEST(SchedulerTest, LongPromptIsCutIntoChunksThatOnlyTheLastOfSamples) {
  Scheduler scheduler({.kv_blocks = 4, .max_tokens_per_step = 24});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(50), 1)).ok());
  const std::vector<std::pair<int32_t, int32_t>> chunks = {{0, 24}, {24, 24}, {48, 2}};
  for (const auto& [position, count] : chunks) {
    const StepPlan& plan = scheduler.Schedule(kNow);
    ASSERT_THAT(plan.sequences, SizeIs(1));
    EXPECT_EQ(plan.sequences[0].position, position);
    EXPECT_EQ(plan.sequences[0].token_count, count);
    EXPECT_EQ(plan.sequences[0].block_count, BlocksFor(position + count));
    EXPECT_EQ(plan.sequences[0].logit_rows, position == 48 ? 1 : 0);
    EXPECT_EQ(scheduler.outputs()[0].samples, position == 48);
    Commit(scheduler, plan);
  }
}

TEST(SchedulerTest, PrefillTakesWhatDecodingLeavesOfTheBudget) {
  Scheduler scheduler({.kv_blocks = 20, .max_sequences_per_step = 8, .max_tokens_per_step = 10});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(2, 100), 9)).ok());
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(2, 200), 9)).ok());
  RunStep(scheduler);
  ASSERT_TRUE(scheduler.Add(Request(3, Prompt(11, 300), 9)).ok());
  ASSERT_TRUE(scheduler.Add(Request(4, Prompt(4, 400), 9)).ok());

  const StepPlan* plan = &scheduler.Schedule(kNow);
  EXPECT_THAT(Ids(*plan), ElementsAre(1, 2, 3));
  EXPECT_THAT(TokenCounts(*plan), ElementsAre(1, 1, 8));
  Commit(scheduler, *plan);
  plan = &scheduler.Schedule(kNow);
  EXPECT_THAT(Ids(*plan), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(TokenCounts(*plan), ElementsAre(1, 1, 3, 4));
  Commit(scheduler, *plan);
}

TEST(SchedulerTest, WaitingSequencesBeginByPriorityThenByArrival) {
  Scheduler scheduler({.kv_blocks = 20, .max_sequences_per_step = 1});
  for (const auto& [id, priority] :
       std::vector<std::pair<SequenceId, int32_t>>{{1, 0}, {2, -5}, {3, 7}, {4, 0}, {5, 7}}) {
    NewSequence request = Request(id, Prompt(4), 1);
    request.priority = priority;
    ASSERT_TRUE(scheduler.Add(std::move(request)).ok());
  }
  std::vector<SequenceId> order;
  while (!scheduler.idle()) {
    const std::vector<SequenceId> ids = RunStep(scheduler);
    ASSERT_THAT(ids, SizeIs(1));
    order.push_back(ids[0]);
    scheduler.Finish(ids[0]);
  }
  EXPECT_THAT(order, ElementsAre(3, 5, 1, 4, 2));
}

TEST(SchedulerTest, RefusesWhatIsMalformed) {
  Scheduler scheduler({.kv_blocks = 4});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(4), 1)).ok());
  EXPECT_EQ(scheduler.Add(Request(1, Prompt(4), 1)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(scheduler.Add(Request(2, {}, 1)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(scheduler.Add(Request(2, Prompt(4), -1)).code(), absl::StatusCode::kInvalidArgument);
  NewSequence replayed = Request(2, Prompt(4), 2);
  replayed.generated_ids = {8, 9};
  const absl::Status status = scheduler.Add(replayed);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 generated tokens"));
  EXPECT_EQ(scheduler.counters().waiting, 1);
}

TEST(SchedulerTest, RefusesWhatCanNeverFit) {
  Scheduler scheduler({.kv_blocks = 4, .context_length = 100});
  // The last generated token is never computed: 65 tokens take 64 positions.
  EXPECT_TRUE(scheduler.Add(Request(1, Prompt(60), 5)).ok());
  EXPECT_EQ(scheduler.Add(Request(2, Prompt(60), 6)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(scheduler.Add(Request(2, Prompt(1), 100)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(scheduler.Add(Request(2, Prompt(60), 2147483647)).code(),
            absl::StatusCode::kOutOfRange);
}

TEST(SchedulerTest, RefusesWhenTooManyWait) {
  Scheduler scheduler({.kv_blocks = 4, .max_waiting = 2});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(4), 1)).ok());
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(4), 1)).ok());
  EXPECT_EQ(scheduler.Add(Request(3, Prompt(4), 1)).code(), absl::StatusCode::kResourceExhausted);
  RunStep(scheduler);
  EXPECT_TRUE(scheduler.Add(Request(3, Prompt(4), 1)).ok());
}

TEST(SchedulerTest, DropsTheExpiredBeforeTheyBeginAndNeverAfter) {
  Scheduler scheduler({.kv_blocks = 40, .max_sequences_per_step = 1});
  for (SequenceId id = 1; id <= 4; ++id) {
    NewSequence request = Request(id, Prompt(4), 5);
    if (id != 4) request.deadline = kNow + absl::Seconds(id == 3 ? 1 : 2);
    ASSERT_TRUE(scheduler.Add(std::move(request)).ok());
  }
  Commit(scheduler, scheduler.Schedule(kNow));  // 1 runs
  EXPECT_THAT(scheduler.TakeExpired(), IsEmpty());
  Commit(scheduler, scheduler.Schedule(kNow + absl::Seconds(2)));
  EXPECT_THAT(scheduler.TakeExpired(), ElementsAre(3));
  const StepPlan& plan = scheduler.Schedule(kNow + absl::Seconds(3));
  EXPECT_THAT(Ids(plan), ElementsAre(1));
  EXPECT_THAT(scheduler.TakeExpired(), ElementsAre(2));
  EXPECT_THAT(scheduler.TakeExpired(), IsEmpty());
  EXPECT_EQ(scheduler.Find(2), nullptr);
  EXPECT_EQ(scheduler.counters().waiting, 1);
}

TEST(SchedulerTest, ReplayedSequenceGoesOnAfterItsGeneratedTokens) {
  Scheduler scheduler({.kv_blocks = 4});
  NewSequence request = Request(1, Prompt(3), 6);
  request.generated_ids = {70, 71};
  ASSERT_TRUE(scheduler.Add(std::move(request)).ok());
  const StepPlan& plan = scheduler.Schedule(kNow);
  EXPECT_THAT(plan.tokens, ElementsAre(1, 2, 3, 70, 71));
  EXPECT_EQ(plan.sequences[0].logit_rows, 1);
  EXPECT_TRUE(scheduler.outputs()[0].samples);
  Commit(scheduler, plan);
  EXPECT_EQ(scheduler.Find(1)->generated_tokens(), 3);
}

TEST(SchedulerTest, FinishDuringAStepFreesAtOnceAndCommitIgnoresIt) {
  Scheduler scheduler({.kv_blocks = 8});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(33, 100), 2)).ok());
  ASSERT_TRUE(scheduler.Add(Request(2, Prompt(33, 200), 2)).ok());
  scheduler.Schedule(kNow);
  EXPECT_TRUE(scheduler.Finish(1));
  EXPECT_EQ(scheduler.counters().kv_blocks_used, 3);
  // The id may be used again at once.
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(33, 100), 2)).ok());
  const std::vector<SampledToken> sampled = {{1, kSampled}, {2, kSampled}};
  scheduler.Commit(sampled);
  const StepPlan& plan = scheduler.Schedule(kNow);
  ASSERT_THAT(Ids(plan), ElementsAre(2, 1));
  EXPECT_EQ(plan.sequences[1].position, 0) << "what the finished sequence computed was not shared";
}

TEST(SchedulerTest, PromptLogitsComeInChunksOfTheRowBudget) {
  Scheduler scheduler({.kv_blocks = 8, .max_sequences_per_step = 2, .max_logit_rows_per_step = 10});
  NewSequence request = Request(1, Prompt(24), 2);
  request.wants_prompt_logits = true;
  ASSERT_TRUE(scheduler.Add(std::move(request)).ok());
  // Positions 0 … 22 predict tokens 1 … 23; position 23 is sampled.
  const std::vector<std::pair<int32_t, int32_t>> chunks = {{0, 10}, {10, 10}, {20, 4}};
  for (const auto& [position, count] : chunks) {
    const StepPlan& plan = scheduler.Schedule(kNow);
    ASSERT_THAT(plan.sequences, SizeIs(1));
    EXPECT_EQ(plan.sequences[0].position, position);
    EXPECT_EQ(plan.sequences[0].token_count, count);
    EXPECT_EQ(plan.sequences[0].logit_rows, count);
    const StepOutput& output = scheduler.outputs()[0];
    EXPECT_EQ(output.prompt_token, position + 1);
    EXPECT_EQ(output.prompt_rows, position == 20 ? 3 : count);
    EXPECT_EQ(output.samples, position == 20);
    Commit(scheduler, plan);
  }
  scheduler.Schedule(kNow);
  EXPECT_EQ(scheduler.outputs()[0].prompt_rows, 0);
  EXPECT_TRUE(scheduler.outputs()[0].samples);
}

TEST(SchedulerTest, ScoringComputesAllButTheLastTokenAndCompletes) {
  Scheduler scheduler({.kv_blocks = 8});
  NewSequence request = Request(1, Prompt(24), 0);
  request.wants_prompt_logits = true;
  ASSERT_TRUE(scheduler.Add(std::move(request)).ok());
  const StepPlan& plan = scheduler.Schedule(kNow);
  EXPECT_THAT(TokenCounts(plan), ElementsAre(23));
  EXPECT_EQ(plan.sequences[0].logit_rows, 23);
  EXPECT_EQ(scheduler.outputs()[0].prompt_rows, 23);
  EXPECT_EQ(scheduler.outputs()[0].prompt_token, 1);
  EXPECT_FALSE(scheduler.outputs()[0].samples);
  EXPECT_TRUE(scheduler.outputs()[0].completes);
  scheduler.Commit({});
  scheduler.Finish(1);
  EXPECT_TRUE(scheduler.Schedule(kNow).empty());
}

TEST(SchedulerTest, ScoringOneTokenTakesOneStepWithoutLogits) {
  Scheduler scheduler({.kv_blocks = 8});
  NewSequence request = Request(1, Prompt(1), 0);
  request.wants_prompt_logits = true;
  ASSERT_TRUE(scheduler.Add(std::move(request)).ok());
  const StepPlan& plan = scheduler.Schedule(kNow);
  EXPECT_THAT(TokenCounts(plan), ElementsAre(1));
  EXPECT_EQ(plan.sequences[0].logit_rows, 0);
  EXPECT_TRUE(scheduler.outputs()[0].completes);
  scheduler.Commit({});
}

TEST(SchedulerTest, PromptLogitsAreComputedDespiteACachedPrefix) {
  Scheduler scheduler({.kv_blocks = 8});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(40), 1)).ok());
  RunStep(scheduler);
  scheduler.Finish(1);
  NewSequence request = Request(2, Prompt(40), 1);
  request.wants_prompt_logits = true;
  ASSERT_TRUE(scheduler.Add(std::move(request)).ok());
  const StepPlan& plan = scheduler.Schedule(kNow);
  EXPECT_EQ(plan.sequences[0].position, 0);
  EXPECT_EQ(plan.sequences[0].logit_rows, 40);
  EXPECT_EQ(scheduler.counters().prefix_query_tokens, 40u) << "only those of the first";
}

TEST(SchedulerTest, PromptLogitsAreGivenOnceDespitePreemption) {
  Scheduler scheduler({.kv_blocks = 4, .prefix_cache = false});
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(15, 100), 40)).ok());
  NewSequence request = Request(2, Prompt(14, 200), 20);
  request.wants_prompt_logits = true;
  ASSERT_TRUE(scheduler.Add(std::move(request)).ok());
  // Both hold two blocks when sequence 1 needs a third, for its 33rd position.
  while (scheduler.counters().preemptions == 0) RunStep(scheduler);
  EXPECT_EQ(scheduler.Find(2)->generated_tokens(), 18);
  scheduler.Finish(1);

  const StepPlan& plan = scheduler.Schedule(kNow);
  ASSERT_THAT(Ids(plan), ElementsAre(2));
  EXPECT_THAT(TokenCounts(plan), ElementsAre(14 + 18));
  EXPECT_EQ(plan.sequences[0].logit_rows, 1);
  EXPECT_EQ(scheduler.outputs()[0].prompt_rows, 0);
  EXPECT_TRUE(scheduler.outputs()[0].samples);
}

TEST(SchedulerTest, MoreSequencesThanTokensOrRowsAreCut) {
  Scheduler scheduler({.kv_blocks = 8,
                       .max_sequences_per_step = 8,
                       .max_tokens_per_step = 3,
                       .max_logit_rows_per_step = 2});
  for (SequenceId id = 1; id <= 4; ++id) ASSERT_TRUE(scheduler.Add(Request(id, {5}, 3)).ok());
  EXPECT_THAT(RunStep(scheduler), ElementsAre(1, 2));
  EXPECT_THAT(RunStep(scheduler), ElementsAre(1, 2));
}

TEST(SchedulerDeathTest, BreakingTheProtocolIsABug) {
  Scheduler scheduler({.kv_blocks = 8});
  EXPECT_DEATH(scheduler.Commit({}), "check failed") << "no step runs";
  ASSERT_TRUE(scheduler.Add(Request(1, Prompt(4), 1)).ok());
  scheduler.Schedule(kNow);
  EXPECT_DEATH(scheduler.Schedule(kNow), "check failed") << "a step runs";
  EXPECT_DEATH(scheduler.Commit({}), "check failed") << "a token is missing";
  const std::vector<SampledToken> twice = {{1, kSampled}, {1, kSampled}};
  EXPECT_DEATH(scheduler.Commit(twice), "check failed");
  const std::vector<SampledToken> sampled = {{1, kSampled}};
  scheduler.Commit(sampled);
  EXPECT_DEATH(scheduler.Schedule(kNow), "check failed") << "it ended and was not finished";
}

}  // namespace
}  // namespace marcoro
