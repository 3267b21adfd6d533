// A crash is not an error: the stream goes on, byte for byte.
#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "coordinator/routing/worker_router.h"
#include "gtest/gtest.h"
#include "tests/coordinator/routing/recording_sink.h"
#include "tests/coordinator/routing/router_test_support.h"

namespace marcoro {
namespace {

using worker::v1::Submit;

std::vector<std::optional<float>> PromptLogprobs(const Submit& submit) {
  std::vector<std::optional<float>> expected = {std::nullopt};
  for (int i = 1; i < submit.prompt_ids_size(); ++i) {
    expected.push_back(FakeWorker::PromptLogprob(submit, i));
  }
  return expected;
}

// `first` takes the sequence and steps by hand; `second` is there to continue it.
class ReplayTest : public testing::Test {
 protected:
  explicit ReplayTest(FakeWorkerOptions first = {.automatic = false}, FakeWorkerOptions second = {})
      : first_(std::move(first)), second_(std::move(second)) {}

  // Starts the sequence on the first worker.
  void Start(const Submit& submit, RouterOptions options) {
    second_.SetState(worker::v1::WORKER_STATE_LOADING);
    router_ = MakeRouter(std::move(options));
    sink_ = std::make_shared<RecordingSink>();
    sequence_ = router_->Start(submit, 0, sink_);
    ASSERT_TRUE(first_.WaitForSequences(1));
    second_.SetState(worker::v1::WORKER_STATE_READY);
    ASSERT_TRUE(WaitReady(*router_, 2));
  }
  void Start(const Submit& submit) { Start(submit, OptionsFor({&first_, &second_})); }

  FakeWorker first_;
  FakeWorker second_;
  std::unique_ptr<WorkerRouter> router_;
  std::shared_ptr<RecordingSink> sink_;
  std::unique_ptr<RoutedSequence> sequence_;
};

constexpr int kTokens = 8;

// How many tokens the first worker has sent when it dies, and whether the router has seen them by
// then.
class EveryCutTest : public ReplayTest,
                     public testing::WithParamInterface<std::tuple<int, bool>> {};

TEST_P(EveryCutTest, TheStreamGoesOnByteForByte) {
  const auto [cut, seen] = GetParam();
  Submit submit = MakeSubmit(11, kTokens);
  submit.set_logprobs(0);
  Start(submit);
  first_.Step(cut);
  if (seen) {
    ASSERT_TRUE(sink_->WaitTokens(cut));
  }
  first_.Kill();
  EXPECT_TRUE(sink_->WaitDone().ok());
  const std::vector<uint32_t> expected = FakeWorker::Tokens(submit);
  EXPECT_EQ(sink_->tokens(), expected);
  std::vector<float> logprobs;
  for (const uint32_t token : expected) logprobs.push_back(FakeWorker::Logprob(token));
  EXPECT_EQ(sink_->logprobs(), logprobs);
  EXPECT_EQ(sink_->end(), worker::v1::SEQUENCE_END_LENGTH);
  EXPECT_EQ(sink_->queue_reports(), 1);
  EXPECT_EQ(sink_->cached_reports(), 1);
  if (seen && cut < kTokens) {
    ASSERT_EQ(second_.submits().size(), 1u);
    EXPECT_EQ(second_.submits()[0].generated_ids_size(), cut);
    EXPECT_EQ(router_->Statistics().replays, cut > 0 ? 1u : 0u);
    EXPECT_EQ(router_->Statistics().resubmits, 1u);
    EXPECT_EQ(router_->Statistics().lost_connections, 1u);
  }
}

INSTANTIATE_TEST_SUITE_P(Cuts, EveryCutTest,
                         testing::Combine(testing::Range(0, kTokens + 1), testing::Bool()));

class PromptLogprobsCutTest : public ReplayTest, public testing::WithParamInterface<int> {};

TEST_P(PromptLogprobsCutTest, NoneIsReportedTwice) {
  // Seven prompt tokens, two in a step: four steps, then three tokens.
  Submit submit = MakeSubmit(12, 3, 7);
  submit.set_prompt_logprobs(0);
  Start(submit);
  const int steps = GetParam();
  first_.Step(steps);
  ASSERT_TRUE(sink_->WaitPromptLogprobs(std::min(2 * steps, 7)));
  ASSERT_TRUE(sink_->WaitTokens(std::max(0, steps - 4)));
  first_.Kill();
  EXPECT_TRUE(sink_->WaitDone().ok());
  EXPECT_EQ(sink_->prompt_logprobs(), PromptLogprobs(submit));
  EXPECT_EQ(sink_->tokens(), FakeWorker::Tokens(submit));
  // They are asked for again only while some are missing.
  ASSERT_EQ(second_.submits().size(), 1u);
  EXPECT_EQ(second_.submits()[0].has_prompt_logprobs(), steps < 4);
}

INSTANTIATE_TEST_SUITE_P(Steps, PromptLogprobsCutTest, testing::Range(0, 7));

TEST_F(ReplayTest, ADrainingWorkerHandsItsSequencesOver) {
  const Submit submit = MakeSubmit(13, kTokens);
  Start(submit);
  first_.Step(3);
  first_.SetState(worker::v1::WORKER_STATE_DRAINING);
  first_.FailAll(worker::v1::SEQUENCE_ERROR_DRAINING);
  EXPECT_TRUE(sink_->WaitDone().ok());
  EXPECT_EQ(sink_->tokens(), FakeWorker::Tokens(submit));
  ASSERT_EQ(second_.submits().size(), 1u);
  EXPECT_EQ(second_.submits()[0].generated_ids_size(), 3);
}

// A worker whose group is lost ends its sequences and refuses others some time before its status,
// or the end of its stream, tells so: it must not eat up what a sequence may be lost.
TEST_F(ReplayTest, AWorkerThatEndsItsSequencesIsNotAskedAgainBeforeItsNextStatus) {
  const Submit submit = MakeSubmit(13, kTokens);
  Start(submit);
  first_.Step(3);
  ASSERT_TRUE(sink_->WaitTokens(3));
  first_.RefuseWith(worker::v1::SEQUENCE_ERROR_DRAINING);
  first_.FailAll(worker::v1::SEQUENCE_ERROR_DRAINING);
  EXPECT_TRUE(sink_->WaitDone().ok());
  EXPECT_EQ(sink_->tokens(), FakeWorker::Tokens(submit));
  EXPECT_EQ(second_.submits().size(), 1u);
}

TEST_F(ReplayTest, ASilentWorkerIsLost) {
  RouterOptions options = OptionsFor({&first_, &second_});
  options.silence_timeout = absl::Milliseconds(300);
  const Submit submit = MakeSubmit(14, kTokens);
  Start(submit, options);
  first_.Step(3);
  ASSERT_TRUE(sink_->WaitTokens(3));
  first_.SetSilent(true);
  EXPECT_TRUE(sink_->WaitDone().ok());
  EXPECT_EQ(sink_->tokens(), FakeWorker::Tokens(submit));
  EXPECT_EQ(second_.submits().size(), 1u);
  EXPECT_GE(router_->Statistics().silent_connections, 1u);
}

class LateEndTest : public ReplayTest {
 protected:
  LateEndTest() : ReplayTest({.automatic = false, .end_separately = true}) {}
};

TEST_F(LateEndTest, ALostEndIsNotAskedForAgain) {
  const Submit submit = MakeSubmit(15, kTokens);
  Start(submit);
  first_.Step(kTokens);
  ASSERT_TRUE(sink_->WaitTokens(kTokens));
  first_.Kill();
  EXPECT_TRUE(sink_->WaitDone().ok());
  EXPECT_EQ(sink_->end(), worker::v1::SEQUENCE_END_LENGTH);
  EXPECT_EQ(sink_->tokens(), FakeWorker::Tokens(submit));
  EXPECT_TRUE(second_.submits().empty());
}

class OtherNumericsTest : public ReplayTest {
 protected:
  OtherNumericsTest() : ReplayTest({.automatic = false}, {.fingerprint = "numerics-b"}) {}
};

TEST_F(OtherNumericsTest, NeverContinueASequenceThatHasOutput) {
  RouterOptions options = OptionsFor({&first_, &second_});
  options.replay_timeout = absl::Milliseconds(100);
  Start(MakeSubmit(16, kTokens), options);
  first_.Step(1);
  ASSERT_TRUE(sink_->WaitTokens(1));
  first_.Kill();
  EXPECT_EQ(sink_->WaitDone().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(sink_->tokens().size(), 1u);
  EXPECT_TRUE(second_.submits().empty());
}

TEST_F(OtherNumericsTest, NeverContinueASequenceThatHasPromptLogprobs) {
  RouterOptions options = OptionsFor({&first_, &second_});
  options.replay_timeout = absl::Milliseconds(100);
  Submit submit = MakeSubmit(16, kTokens);
  submit.set_prompt_logprobs(0);
  Start(submit, options);
  first_.Step(1);
  ASSERT_TRUE(sink_->WaitPromptLogprobs(2));
  first_.Kill();
  EXPECT_EQ(sink_->WaitDone().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(second_.submits().empty());
}

TEST_F(OtherNumericsTest, MayTakeASequenceThatHasGivenNothing) {
  Start(MakeSubmit(17, kTokens));
  first_.Kill();
  EXPECT_TRUE(sink_->WaitDone().ok());
  EXPECT_EQ(sink_->tokens(), FakeWorker::Tokens(MakeSubmit(17, kTokens)));
  EXPECT_EQ(second_.submits().size(), 1u);
}

TEST_F(OtherNumericsTest, TheSequenceWaitsUntilItsOwnComeBack) {
  Start(MakeSubmit(18, kTokens));
  first_.Step(2);
  ASSERT_TRUE(sink_->WaitTokens(2));
  first_.Kill();
  ASSERT_TRUE(Eventually([&] { return router_->Statistics().waiting == 1; }));
  first_.Restart();
  ASSERT_TRUE(first_.WaitForSequences(1));
  first_.Step(kTokens);
  EXPECT_TRUE(sink_->WaitDone().ok());
  EXPECT_EQ(sink_->tokens(), FakeWorker::Tokens(MakeSubmit(18, kTokens)));
  EXPECT_TRUE(second_.submits().empty());
}

TEST_F(ReplayTest, FullQueuesDelayAReplayButDoNotFailIt) {
  const Submit submit = MakeSubmit(19, kTokens);
  Start(submit);
  first_.Step(2);
  ASSERT_TRUE(sink_->WaitTokens(2));
  second_.RefuseWith(worker::v1::SEQUENCE_ERROR_QUEUE_FULL);
  first_.Kill();
  // It asks again and again …
  ASSERT_TRUE(second_.WaitForSubmits(3));
  EXPECT_FALSE(sink_->done());
  // … until there is room.
  second_.RefuseWith(std::nullopt);
  EXPECT_TRUE(sink_->WaitDone().ok());
  EXPECT_EQ(sink_->tokens(), FakeWorker::Tokens(submit));
}

TEST_F(ReplayTest, QueuesThatStayFullEndItWithTheReplayTimeout) {
  RouterOptions options = OptionsFor({&first_, &second_});
  options.replay_timeout = absl::Milliseconds(100);
  Start(MakeSubmit(19, kTokens), options);
  first_.Step(2);
  ASSERT_TRUE(sink_->WaitTokens(2));
  second_.RefuseWith(worker::v1::SEQUENCE_ERROR_QUEUE_FULL);
  first_.Kill();
  EXPECT_EQ(sink_->WaitDone().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ReplayTest, TheQueueDeadlineShrinksFromAttemptToAttempt) {
  Submit submit = MakeSubmit(20, kTokens);
  submit.set_queue_timeout_microseconds(50'000'000);
  Start(submit);
  first_.FailAll(worker::v1::SEQUENCE_ERROR_DRAINING);
  ASSERT_TRUE(Eventually([&] { return first_.submits().size() + second_.submits().size() == 2; }));
  const uint64_t before = first_.submits()[0].queue_timeout_microseconds();
  const std::vector<Submit> elsewhere = second_.submits();
  const uint64_t after =
      (elsewhere.empty() ? first_.submits()[1] : elsewhere[0]).queue_timeout_microseconds();
  EXPECT_LE(before, 50'000'000u);
  EXPECT_LT(after, before);
  EXPECT_GT(after, 0u);
}

TEST_F(ReplayTest, ASequenceThatHasBegunHasNoQueueDeadlineAnyMore) {
  Submit submit = MakeSubmit(21, kTokens);
  submit.set_queue_timeout_microseconds(50'000'000);
  Start(submit);
  first_.Step(1);
  ASSERT_TRUE(sink_->WaitTokens(1));
  first_.Kill();
  EXPECT_TRUE(sink_->WaitDone().ok());
  ASSERT_EQ(second_.submits().size(), 1u);
  EXPECT_EQ(second_.submits()[0].queue_timeout_microseconds(), 0u);
}

TEST(Replay, ASequenceThatIsAlwaysLostIsGivenUp) {
  FakeWorker worker;
  worker.RefuseWith(worker::v1::SEQUENCE_ERROR_DRAINING);
  RouterOptions options = OptionsFor({&worker});
  options.max_replays = 4;
  const auto router = MakeRouter(options);
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(22, 5), 0, sink);
  EXPECT_EQ(sink->WaitDone().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(worker.submits().size(), 5u);
}

TEST(Replay, ProgressPaysForAnotherReplay) {
  FakeWorker worker({.automatic = false});
  RouterOptions options = OptionsFor({&worker});
  options.max_replays = 1;
  const auto router = MakeRouter(options);
  const Submit submit = MakeSubmit(23, 6);
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(submit, 0, sink);
  for (int i = 1; i <= 6; ++i) {
    ASSERT_TRUE(worker.WaitForSequences(1));
    worker.Step();
    ASSERT_TRUE(sink->WaitTokens(i));
    worker.DieAfterTokens(0);
    worker.Restart();
  }
  EXPECT_TRUE(sink->WaitDone().ok());
  EXPECT_EQ(sink->tokens(), FakeWorker::Tokens(submit));
}

TEST(Replay, AWorkerThatComesBackIsUsedAgain) {
  FakeWorker worker;
  const auto router = MakeRouter(OptionsFor({&worker}));
  for (uint64_t i = 1; i <= 3; ++i) {
    auto sink = std::make_shared<RecordingSink>();
    const auto sequence = router->Start(MakeSubmit(i, 5), 0, sink);
    EXPECT_TRUE(sink->WaitDone().ok());
    ASSERT_TRUE(Eventually([&] { return router->Statistics().lost_connections == i - 1; }));
    EXPECT_EQ(router->Statistics().replicas[0].connections, i);
    worker.Kill();
    ASSERT_TRUE(Eventually([&] { return router->Statistics().lost_connections == i; }));
    worker.Restart();
  }
}

// Workers die again and again, at moments drawn from the seed, while many sequences run.
class ChaosTest : public testing::TestWithParam<uint32_t> {};

TEST_P(ChaosTest, EverySequenceGetsExactlyItsTokens) {
  const FakeWorkerOptions worker_options = {.step_interval = absl::Microseconds(300)};
  std::vector<std::unique_ptr<FakeWorker>> workers;
  for (int i = 0; i < 3; ++i) workers.push_back(std::make_unique<FakeWorker>(worker_options));
  RouterOptions options = OptionsFor({workers[0].get(), workers[1].get(), workers[2].get()});
  // The dice may fall badly for one sequence many times in a row.
  options.max_replays = 1000;
  const auto router = MakeRouter(options);

  std::mt19937 random(GetParam());
  std::vector<Submit> submits;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  std::vector<std::unique_ptr<RoutedSequence>> sequences;
  for (uint64_t i = 0; i < 60; ++i) {
    submits.push_back(MakeSubmit(i, 20 + random() % 60, 1 + random() % 8));
    submits.back().set_logprobs(0);
    if (i % 3 == 0) submits.back().set_prompt_logprobs(0);
    sinks.push_back(std::make_shared<RecordingSink>());
    sequences.push_back(router->Start(submits.back(), i % 5, sinks.back()));
  }
  const auto all_done = [&] {
    return std::all_of(sinks.begin(), sinks.end(), [](const auto& sink) { return sink->done(); });
  };
  for (int death = 0; death < 12; ++death) {
    const size_t first = random() % workers.size();
    FakeWorker* victim = nullptr;
    ASSERT_TRUE(Eventually([&] {
      for (size_t i = 0; i < workers.size() && victim == nullptr; ++i) {
        FakeWorker& candidate = *workers[(first + i) % workers.size()];
        if (candidate.sequences() > 0) victim = &candidate;
      }
      return victim != nullptr || all_done();
    }));
    if (victim == nullptr) break;
    victim->DieAfterTokens(static_cast<int>(random() % 100));
    // Dead, or out of work and therefore alive.
    ASSERT_TRUE(Eventually([&] { return victim->streams() == 0 || victim->sequences() == 0; }));
    victim->Restart();
  }
  for (size_t i = 0; i < sinks.size(); ++i) {
    EXPECT_TRUE(sinks[i]->WaitDone().ok());
    const std::vector<uint32_t> expected = FakeWorker::Tokens(submits[i]);
    EXPECT_EQ(sinks[i]->tokens(), expected);
    std::vector<float> logprobs;
    for (const uint32_t token : expected) logprobs.push_back(FakeWorker::Logprob(token));
    EXPECT_EQ(sinks[i]->logprobs(), logprobs);
    EXPECT_EQ(sinks[i]->prompt_logprobs(), submits[i].has_prompt_logprobs()
                                               ? PromptLogprobs(submits[i])
                                               : std::vector<std::optional<float>>());
  }
  EXPECT_GT(router->Statistics().replays, 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, ChaosTest, testing::Range(1u, 6u));

}  // namespace
}  // namespace marcoro
