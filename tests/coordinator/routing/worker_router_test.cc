// Sequences without mishap, and what is said when a request cannot be served.
#include "coordinator/routing/worker_router.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/routing/recording_sink.h"
#include "tests/coordinator/routing/router_test_support.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using worker::v1::Submit;

TEST(WorkerRouter, RefusesBadTargetsAndPolicies) {
  RouterOptions options;
  options.targets = "nowhere";
  EXPECT_EQ(WorkerRouter::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.targets = "localhost:1";
  options.policy = "best";
  EXPECT_EQ(WorkerRouter::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(WorkerRouter, TokensPassInOrderWithTheirLogprobs) {
  FakeWorker worker;
  const auto router = MakeRouter(OptionsFor({&worker}));
  Submit submit = MakeSubmit(1, 50);
  submit.set_logprobs(0);
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(submit, 0, sink);
  EXPECT_TRUE(sink->WaitDone().ok());
  const std::vector<uint32_t> expected = FakeWorker::Tokens(submit);
  EXPECT_EQ(sink->tokens(), expected);
  EXPECT_EQ(sink->end(), worker::v1::SEQUENCE_END_LENGTH);
  EXPECT_EQ(sink->queue_reports(), 1);
  EXPECT_EQ(sink->cached_reports(), 1);
  std::vector<float> logprobs;
  for (const uint32_t token : expected) logprobs.push_back(FakeWorker::Logprob(token));
  EXPECT_EQ(sink->logprobs(), logprobs);
}

TEST(WorkerRouter, AStopTokenEndsTheSequence) {
  FakeWorker worker;
  const auto router = MakeRouter(OptionsFor({&worker}));
  Submit submit = MakeSubmit(2, 50);
  submit.add_stop_token_ids(FakeWorker::Tokens(submit)[7]);
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(submit, 0, sink);
  EXPECT_TRUE(sink->WaitDone().ok());
  EXPECT_EQ(sink->end(), worker::v1::SEQUENCE_END_STOP_TOKEN);
  EXPECT_EQ(sink->tokens(), FakeWorker::Tokens(submit));
}

TEST(WorkerRouter, ScoringGivesALogprobForEveryPromptToken) {
  FakeWorker worker;
  const auto router = MakeRouter(OptionsFor({&worker}));
  Submit submit = MakeSubmit(3, 0, 7);
  submit.set_prompt_logprobs(0);
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(submit, 0, sink);
  EXPECT_TRUE(sink->WaitDone().ok());
  std::vector<std::optional<float>> expected = {std::nullopt};
  for (int i = 1; i < 7; ++i) expected.push_back(FakeWorker::PromptLogprob(submit, i));
  EXPECT_EQ(sink->prompt_logprobs(), expected);
  EXPECT_THAT(sink->tokens(), IsEmpty());
}

TEST(WorkerRouter, ManySequencesShareTheStreams) {
  FakeWorker a;
  FakeWorker b;
  RouterOptions options = OptionsFor({&a, &b});
  options.policy = "round_robin";
  const auto router = MakeRouter(options);
  ASSERT_TRUE(WaitReady(*router, 2));
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  std::vector<std::unique_ptr<RoutedSequence>> sequences;
  for (uint64_t i = 0; i < 128; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    sequences.push_back(router->Start(MakeSubmit(i, 20), 0, sinks.back()));
  }
  for (uint64_t i = 0; i < 128; ++i) {
    EXPECT_TRUE(sinks[i]->WaitDone().ok());
    EXPECT_EQ(sinks[i]->tokens(), FakeWorker::Tokens(MakeSubmit(i, 20)));
  }
  EXPECT_EQ(a.submits().size(), 64u);
  EXPECT_EQ(b.submits().size(), 64u);
  EXPECT_EQ(a.connections(), 1);
  EXPECT_EQ(b.connections(), 1);
}

TEST(WorkerRouter, NoWorkerIsUnavailableAfterTheStartTimeout) {
  FakeWorker worker;
  worker.Kill();
  RouterOptions options = OptionsFor({&worker});
  options.start_timeout = absl::Milliseconds(50);
  const auto router = MakeRouter(options);
  auto sink = std::make_shared<RecordingSink>();
  const absl::Time begin = absl::Now();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_EQ(sink->WaitDone().code(), absl::StatusCode::kUnavailable);
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(50));
}

TEST(WorkerRouter, ASequenceWaitsForAWorkerThatIsLoading) {
  FakeWorker worker({.state = worker::v1::WORKER_STATE_LOADING});
  const auto router = MakeRouter(OptionsFor({&worker}));
  ASSERT_TRUE(Eventually([&] { return router->Summary().loading; }));
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_TRUE(worker.submits().empty());
  worker.SetState(worker::v1::WORKER_STATE_READY);
  EXPECT_TRUE(sink->WaitDone().ok());
  EXPECT_EQ(sink->tokens(), FakeWorker::Tokens(MakeSubmit(1, 5)));
}

TEST(WorkerRouter, WhatWaitsForAWorkerIsBounded) {
  FakeWorker worker({.state = worker::v1::WORKER_STATE_LOADING});
  RouterOptions options = OptionsFor({&worker});
  options.max_waiting = 2;
  const auto router = MakeRouter(options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  std::vector<std::unique_ptr<RoutedSequence>> sequences;
  for (uint64_t i = 0; i < 3; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    sequences.push_back(router->Start(MakeSubmit(i, 5), 0, sinks.back()));
  }
  EXPECT_EQ(sinks[2]->WaitDone().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(router->Statistics().waiting, 2u);
  worker.SetState(worker::v1::WORKER_STATE_READY);
  EXPECT_TRUE(sinks[0]->WaitDone().ok());
  EXPECT_TRUE(sinks[1]->WaitDone().ok());
}

TEST(WorkerRouter, TheQueueDeadlineHoldsWhileItWaitsForAWorker) {
  FakeWorker worker({.state = worker::v1::WORKER_STATE_LOADING});
  const auto router = MakeRouter(OptionsFor({&worker}));
  Submit submit = MakeSubmit(1, 5);
  submit.set_queue_timeout_microseconds(20000);
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(submit, 0, sink);
  EXPECT_EQ(sink->WaitDone().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(WorkerRouter, AFullQueueSendsTheSequenceToAnother) {
  FakeWorker a;
  FakeWorker b;
  const auto router = MakeRouter(OptionsFor({&a, &b}));
  ASSERT_TRUE(WaitReady(*router, 2));
  a.RefuseWith(worker::v1::SEQUENCE_ERROR_QUEUE_FULL);
  for (uint64_t i = 0; i < 8; ++i) {
    auto sink = std::make_shared<RecordingSink>();
    const auto sequence = router->Start(MakeSubmit(i, 5), 0, sink);
    EXPECT_TRUE(sink->WaitDone().ok());
    EXPECT_EQ(sink->tokens(), FakeWorker::Tokens(MakeSubmit(i, 5)));
  }
  EXPECT_EQ(b.submits().size(), 8u);
}

TEST(WorkerRouter, FullQueuesEverywhereAreResourceExhausted) {
  FakeWorker a;
  FakeWorker b;
  const auto router = MakeRouter(OptionsFor({&a, &b}));
  ASSERT_TRUE(WaitReady(*router, 2));
  a.RefuseWith(worker::v1::SEQUENCE_ERROR_QUEUE_FULL);
  b.RefuseWith(worker::v1::SEQUENCE_ERROR_QUEUE_FULL);
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_EQ(sink->WaitDone().code(), absl::StatusCode::kResourceExhausted);
  // Each was asked once.
  EXPECT_EQ(a.submits().size(), 1u);
  EXPECT_EQ(b.submits().size(), 1u);
}

TEST(WorkerRouter, AStreamThatTakesNoMoreIsResourceExhausted) {
  FakeWorker worker;
  RouterOptions options = OptionsFor({&worker});
  options.stream.max_queued_requests = 0;
  const auto router = MakeRouter(options);
  ASSERT_TRUE(WaitReady(*router, 1));
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_EQ(sink->WaitDone().code(), absl::StatusCode::kResourceExhausted);
}

struct ErrorCase {
  worker::v1::SequenceError error;
  absl::StatusCode code;
};

class WorkerErrorTest : public testing::TestWithParam<ErrorCase> {};

TEST_P(WorkerErrorTest, BecomesAStatus) {
  FakeWorker worker;
  worker.RefuseWith(GetParam().error);
  const auto router = MakeRouter(OptionsFor({&worker}));
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_EQ(sink->WaitDone().code(), GetParam().code);
  EXPECT_EQ(sink->updates(), 0);
  EXPECT_EQ(worker.submits().size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(
    WorkerRouter, WorkerErrorTest,
    testing::Values(
        ErrorCase{worker::v1::SEQUENCE_ERROR_DEADLINE, absl::StatusCode::kDeadlineExceeded},
        ErrorCase{worker::v1::SEQUENCE_ERROR_INVALID, absl::StatusCode::kInvalidArgument},
        ErrorCase{worker::v1::SEQUENCE_ERROR_NOT_A_NUMBER, absl::StatusCode::kInternal},
        ErrorCase{worker::v1::SEQUENCE_ERROR_TOO_LONG, absl::StatusCode::kOutOfRange},
        ErrorCase{worker::v1::SEQUENCE_ERROR_UNSPECIFIED, absl::StatusCode::kInternal}),
    [](const testing::TestParamInfo<ErrorCase>& parameter) {
      return worker::v1::SequenceError_Name(parameter.param.error);
    });

TEST(WorkerRouter, TheWorkersReasonIsPassedOn) {
  FakeWorker worker;
  worker.RefuseWith(worker::v1::SEQUENCE_ERROR_INVALID);
  const auto router = MakeRouter(OptionsFor({&worker}));
  auto sink = std::make_shared<RecordingSink>();
  const auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_THAT(std::string(sink->WaitDone().message()), HasSubstr("as the test wants it"));
}

TEST(WorkerRouter, DestroyingTheHandleCancelsOnTheWorker) {
  FakeWorker worker({.automatic = false});
  const auto router = MakeRouter(OptionsFor({&worker}));
  auto sink = std::make_shared<RecordingSink>();
  auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  ASSERT_TRUE(worker.WaitForSequences(1));
  worker.Step(2);
  ASSERT_TRUE(sink->WaitTokens(2));
  sequence.reset();
  ASSERT_TRUE(worker.WaitForCancels(1));
  EXPECT_THAT(worker.cancels(), ElementsAre(worker.submits()[0].sequence_id()));
  EXPECT_EQ(worker.sequences(), 0);
  EXPECT_FALSE(sink->done());
  EXPECT_EQ(router->Statistics().replicas[0].in_flight, 0u);
}

TEST(WorkerRouter, DestroyingTheHandleEndsTheWait) {
  FakeWorker worker({.state = worker::v1::WORKER_STATE_LOADING});
  const auto router = MakeRouter(OptionsFor({&worker}));
  auto sink = std::make_shared<RecordingSink>();
  auto sequence = router->Start(MakeSubmit(1, 5), 0, sink);
  EXPECT_EQ(router->Statistics().waiting, 1u);
  sequence.reset();
  EXPECT_EQ(router->Statistics().waiting, 0u);
  EXPECT_EQ(sink.use_count(), 1);
  EXPECT_FALSE(sink->done());
}

TEST(WorkerRouter, SummaryTellsTheStatesOfTheReplicas) {
  FakeWorker a({.state = worker::v1::WORKER_STATE_LOADING, .fingerprint = "of a"});
  FakeWorker b({.fingerprint = "of b", .automatic = false});
  const auto router = MakeRouter(OptionsFor({&a, &b}));
  ASSERT_TRUE(Eventually([&] {
    const ReplicaSummary summary = router->Summary();
    return summary.ready == 1 && summary.loading;
  }));
  EXPECT_EQ(router->Summary().configured, 2);
  EXPECT_FALSE(router->Summary().draining);
  EXPECT_EQ(router->Summary().newest.numerics_fingerprint(), "of b");

  std::vector<std::unique_ptr<RoutedSequence>> sequences;
  for (uint64_t i = 0; i < 3; ++i) {
    sequences.push_back(router->Start(MakeSubmit(i, 5), 0, std::make_shared<RecordingSink>()));
  }
  EXPECT_TRUE(Eventually([&] { return router->Summary().running == 3; }));

  a.SetState(worker::v1::WORKER_STATE_DRAINING);
  b.SetState(worker::v1::WORKER_STATE_DRAINING);
  EXPECT_TRUE(Eventually([&] { return router->Summary().draining; }));
  EXPECT_EQ(router->Summary().ready, 0);
  EXPECT_FALSE(router->Summary().loading);
}

TEST(WorkerRouter, LoadOfOtherCoordinatorsCounts) {
  FakeWorker a({.automatic = false});
  FakeWorker b({.automatic = false});
  const auto others = MakeRouter(OptionsFor({&a}));
  std::vector<std::unique_ptr<RoutedSequence>> sequences;
  for (uint64_t i = 0; i < 4; ++i) {
    sequences.push_back(others->Start(MakeSubmit(i, 5), 0, std::make_shared<RecordingSink>()));
  }
  ASSERT_TRUE(a.WaitForSequences(4));
  const auto router = MakeRouter(OptionsFor({&a, &b}));
  ASSERT_TRUE(WaitReady(*router, 2));
  for (uint64_t i = 0; i < 3; ++i) {
    sequences.push_back(router->Start(MakeSubmit(i, 5), 0, std::make_shared<RecordingSink>()));
  }
  EXPECT_TRUE(b.WaitForSequences(3));
  EXPECT_EQ(a.sequences(), 4);
}

}  // namespace
}  // namespace marcoro
