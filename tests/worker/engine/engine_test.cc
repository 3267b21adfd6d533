// The engine's own promises, with an executor in place of the model: a vocabulary of eight ids,
// logits that the test chooses, and a hook that runs while a step is under way.
#include "worker/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"

namespace marcoro {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kVocabulary = 8;
constexpr TokenId kLikeliest = 5;

// Gives every row the same logits, except for rows of sequences that are to be broken.
class ScriptedExecutor final : public StepExecutor {
 public:
  absl::StatusOr<Tensor> Execute(const StepPlan& plan) override {
    ++steps;
    if (during_step) during_step();
    if (!failure.ok()) return failure;
    int64_t rows = 0;
    for (const SequenceStep& step : plan.sequences) rows += step.logit_rows;
    logits_.assign(static_cast<size_t>(rows * kVocabulary), 0.0f);
    size_t row = 0;
    size_t token = 0;
    for (const SequenceStep& step : plan.sequences) {
      const bool breaks = plan.tokens[token] == not_a_number_after;
      for (int32_t i = 0; i < step.logit_rows; ++i, ++row) {
        logits_[row * kVocabulary + kLikeliest] =
            breaks ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
      }
      token += static_cast<size_t>(step.token_count);
    }
    return Tensor(logits_.data(), DType::kF32, rows, kVocabulary);
  }
  absl::Status Heartbeat() override { return failure; }

  int steps = 0;
  std::function<void()> during_step;
  absl::Status failure;
  TokenId not_a_number_after = -1;  // a step that begins with this token computes NaN

 private:
  std::vector<float> logits_;
};

// Keeps what it is given, by request.
class RecordingSink final : public OutputSink {
 public:
  void Deliver(std::vector<SequenceOutput> outputs) override {
    absl::MutexLock lock(&mutex_);
    for (SequenceOutput& output : outputs) {
      std::vector<TokenId>& tokens = tokens_[output.client_id];
      tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
      if (output.end != EndReason::kRunning) ends_.emplace(output.client_id, std::move(output));
    }
  }
  std::vector<TokenId> Tokens(uint64_t id) {
    absl::MutexLock lock(&mutex_);
    return tokens_[id];
  }
  bool Ended(uint64_t id) {
    absl::MutexLock lock(&mutex_);
    return ends_.contains(id);
  }
  SequenceOutput AwaitEnd(uint64_t id) {
    const auto ended = [&] {
      mutex_.AssertReaderHeld();
      return ends_.contains(id);
    };
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&ended), absl::Minutes(1)));
    return ends_[id];
  }

 private:
  absl::Mutex mutex_;
  std::map<uint64_t, std::vector<TokenId>> tokens_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, SequenceOutput> ends_ ABSL_GUARDED_BY(mutex_);
};

class EngineTest : public testing::Test {
 protected:
  EngineTest() : backend_(*CreateBackend({.name = "reference"})) { Create({}); }

  void Create(SchedulerOptions scheduler) {
    scheduler.kv_blocks = 64;
    scheduler.context_length = 256;
    EngineOptions options;
    options.scheduler = scheduler;
    engine_ = std::make_unique<Engine>(options, *backend_, executor_);
  }

  EngineRequest Request(uint64_t id, int32_t max_tokens, TokenId first = 1) {
    EngineRequest request;
    request.sink = sink_;
    request.client_id = id;
    request.prompt = {first, 2, 3};
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    return request;
  }

  // Runs the engine on this thread until `steps` steps have been executed.
  absl::Status RunSteps(int steps, std::function<void(int step)> during = nullptr) {
    executor_.during_step = [this, steps, during] {
      if (during) during(executor_.steps);
      if (executor_.steps == steps) engine_->Stop();
    };
    return engine_->Run();
  }

  const std::unique_ptr<Backend> backend_;
  ScriptedExecutor executor_;
  const std::shared_ptr<RecordingSink> sink_ = std::make_shared<RecordingSink>();
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, ARequestGetsATokenAStepAndEndsAtItsLength) {
  engine_->Submit(Request(1, 3));
  ASSERT_TRUE(RunSteps(3).ok());
  EXPECT_THAT(sink_->Tokens(1), ElementsAre(kLikeliest, kLikeliest, kLikeliest));
  EXPECT_EQ(sink_->AwaitEnd(1).end, EndReason::kLength);
  EXPECT_EQ(engine_->snapshot().scheduler.kv_blocks_used, 0);
}

TEST_F(EngineTest, ACancelledRequestHasFreedItsBlocksBeforeTheNextStepRuns) {
  engine_->Submit(Request(1, 200));
  engine_->Submit(Request(2, 200));
  std::map<int, int32_t> running;
  std::map<int, int32_t> used;
  ASSERT_TRUE(RunSteps(6, [&](int step) {
                running[step] = engine_->snapshot().scheduler.running;
                used[step] = engine_->snapshot().scheduler.kv_blocks_used;
                if (step == 3) engine_->Cancel(sink_.get(), 1);
              }).ok());
  // The snapshot is that of the step before: 3 and 4 still show both, the one after the cancel only
  // one.
  EXPECT_EQ(running[4], 2);
  EXPECT_EQ(used[4], 2);
  EXPECT_EQ(running[5], 1);
  EXPECT_EQ(used[5], 1);
  EXPECT_THAT(sink_->Tokens(1), testing::SizeIs(3)) << "nothing after the step of the cancel";
  EXPECT_FALSE(sink_->Ended(1)) << "who cancels is told nothing more";
  EXPECT_EQ(engine_->snapshot().finished_cancelled, 1u);
}

TEST_F(EngineTest, ASinkThatGoesTakesAllOfItsRequestsAndNobodyElses) {
  const auto other = std::make_shared<RecordingSink>();
  EngineRequest theirs = Request(1, 200);
  theirs.sink = other;
  engine_->Submit(Request(1, 200));
  engine_->Submit(Request(2, 200));
  engine_->Submit(std::move(theirs));
  ASSERT_TRUE(RunSteps(6, [&](int step) {
                if (step == 2) engine_->CancelAll(sink_.get());
              }).ok());
  EXPECT_THAT(sink_->Tokens(1), testing::SizeIs(2));
  EXPECT_THAT(sink_->Tokens(2), testing::SizeIs(2));
  EXPECT_THAT(other->Tokens(1), testing::SizeIs(6));
}

TEST_F(EngineTest, ANumberThatIsNoneEndsItsSequenceAlone) {
  executor_.not_a_number_after = 7;  // as a prompt's first token
  engine_->Submit(Request(1, 4, /*first=*/7));
  engine_->Submit(Request(2, 4));
  engine_->Submit(Request(3, 200));  // keeps steps coming
  ASSERT_TRUE(RunSteps(8).ok());
  const SequenceOutput broken = sink_->AwaitEnd(1);
  EXPECT_EQ(broken.error, EndError::kNotANumber);
  EXPECT_THAT(broken.detail, HasSubstr("NaN"));
  EXPECT_EQ(sink_->AwaitEnd(2).end, EndReason::kLength);
  EXPECT_THAT(sink_->Tokens(2), Each(kLikeliest));
  EXPECT_EQ(engine_->snapshot().scheduler.kv_blocks_used, 0);
}

TEST_F(EngineTest, ALostGroupEndsWhatRunsAndRefusesWhatComes) {
  engine_->Submit(Request(1, 200));
  executor_.during_step = [&] {
    if (executor_.steps == 3) executor_.failure = absl::UnavailableError("rank 1 is gone");
  };
  EXPECT_EQ(engine_->Run().code(), absl::StatusCode::kUnavailable);
  const SequenceOutput lost = sink_->AwaitEnd(1);
  EXPECT_EQ(lost.error, EndError::kDraining) << "so that a coordinator goes on elsewhere";
  EXPECT_THAT(lost.detail, HasSubstr("rank 1 is gone"));
  EXPECT_THAT(sink_->Tokens(1), testing::SizeIs(2));
  engine_->Submit(Request(2, 1));
  EXPECT_EQ(sink_->AwaitEnd(2).error, EndError::kDraining);
  EXPECT_TRUE(engine_->WaitIdle(absl::Now() + absl::Minutes(1))) << "nobody waits for ever";
}

TEST_F(EngineTest, WhatArrivesAsTheEngineStopsIsAnswered) {
  engine_->Submit(Request(1, 200));
  ASSERT_TRUE(RunSteps(2, [&](int step) {
                if (step == 2) engine_->Submit(Request(2, 1));
              }).ok());
  EXPECT_EQ(sink_->AwaitEnd(1).error, EndError::kDraining);
  EXPECT_EQ(sink_->AwaitEnd(2).error, EndError::kDraining);
}

TEST_F(EngineTest, ADrainLetsRunningRequestsFinish) {
  engine_->Submit(Request(1, 5));
  ASSERT_TRUE(RunSteps(5, [&](int step) {
                if (step == 2) engine_->Drain();
                if (step == 3) engine_->Submit(Request(2, 5));
              }).ok());
  EXPECT_EQ(sink_->AwaitEnd(1).end, EndReason::kLength);
  EXPECT_EQ(sink_->AwaitEnd(2).error, EndError::kDraining);
}

TEST_F(EngineTest, ItsInboxIsBounded) {
  Create({.max_sequences_per_step = 2, .max_waiting = 3});
  for (uint64_t id = 1; id <= 8; ++id) engine_->Submit(Request(id, 1));
  for (uint64_t id = 6; id <= 8; ++id)
    EXPECT_EQ(sink_->AwaitEnd(id).error, EndError::kQueueFull) << id;
  EXPECT_FALSE(sink_->Ended(5));
}

TEST_F(EngineTest, AnIdleEngineTellsItsPeersThatItLivesAndNoticesTheirLoss) {
  EngineOptions options;
  options.scheduler = {.kv_blocks = 4, .context_length = 64};
  options.heartbeat_interval = absl::Milliseconds(1);
  engine_ = std::make_unique<Engine>(options, *backend_, executor_);
  executor_.failure = absl::DeadlineExceededError("rank 1 does not answer");
  EXPECT_EQ(engine_->Run().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(executor_.steps, 0);
}

}  // namespace
}  // namespace marcoro
