// The worker's gRPC edge over a real socket, with a real engine on the tiny checkpoint behind it.
#include "worker/service/worker_service.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/worker/engine/test_group.h"

namespace marcoro {
namespace {

using worker::v1::ConnectRequest;
using worker::v1::ConnectResponse;

class WorkerServiceTest : public testing::Test {
 protected:
  WorkerServiceTest()
      : group_({.checkpoint = "tiny",
                .step_delay = absl::Milliseconds(3),
                .scheduler = {.kv_blocks = 64, .context_length = 1000}}),
        service_({.numerics_fingerprint = "abc",
                  .tensor_parallel = 1,
                  .context_length = 1000,
                  .vocabulary_size = group_.vocabulary_size(),
                  .quantization = "fp8"},
                 absl::Milliseconds(20)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    stub_ = worker::v1::WorkerService::NewStub(grpc::CreateChannel(
        "127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials()));
  }
  ~WorkerServiceTest() override {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  }

  // Waits until the engine's counters satisfy the predicate; the test's own timeout bounds it.
  void AwaitEngine(const std::function<bool(const SchedulerCounters&)>& predicate) {
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    while (!predicate(group_.engine().snapshot().scheduler)) {
      ASSERT_LT(absl::Now(), deadline);
      std::this_thread::yield();
    }
  }

  TestGroup group_;
  WorkerService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<worker::v1::WorkerService::Stub> stub_;
};

// One stream, read synchronously.
class Link {
 public:
  explicit Link(worker::v1::WorkerService::Stub& stub) : stream_(stub.Connect(&context_)) {}
  ~Link() {
    context_.TryCancel();
    stream_->Finish();
  }

  ConnectResponse Read() {
    ConnectResponse response;
    EXPECT_TRUE(stream_->Read(&response));
    return response;
  }
  worker::v1::WorkerStatus ReadStatus() {
    while (true) {
      ConnectResponse response = Read();
      if (response.has_status()) return response.status();
    }
  }
  // Reads until the sequence ends; returns all its updates merged.
  worker::v1::SequenceUpdate ReadToEnd(uint64_t id) {
    worker::v1::SequenceUpdate merged;
    while (merged.end() == worker::v1::SEQUENCE_END_UNSPECIFIED) {
      const ConnectResponse response = Read();
      for (const auto& update : response.updates()) {
        if (update.sequence_id() == id) merged.MergeFrom(update);
      }
    }
    return merged;
  }
  void Submit(uint64_t id, int max_tokens, int prompt_token = 5) {
    ConnectRequest request;
    auto* submit = request.mutable_submit();
    submit->set_sequence_id(id);
    submit->add_prompt_ids(1);
    submit->add_prompt_ids(prompt_token);
    submit->set_max_tokens(max_tokens);
    submit->mutable_sampling()->set_top_p(1);
    submit->mutable_sampling()->set_typical_p(1);
    submit->mutable_sampling()->set_repetition_penalty(1);
    EXPECT_TRUE(stream_->Write(request));
  }
  void Cancel(uint64_t id) {
    ConnectRequest request;
    request.mutable_cancel()->set_sequence_id(id);
    EXPECT_TRUE(stream_->Write(request));
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<ConnectRequest, ConnectResponse>> stream_;
};

TEST_F(WorkerServiceTest, TheFirstMessageUpIsTheStatusAndItsStateFollowsTheWorker) {
  Link link(*stub_);
  const ConnectResponse first = link.Read();
  ASSERT_TRUE(first.has_status());
  EXPECT_EQ(first.status().state(), worker::v1::WORKER_STATE_LOADING);
  EXPECT_EQ(first.status().numerics_fingerprint(), "abc");
  EXPECT_EQ(first.status().quantization(), "fp8");
  service_.Attach(&group_.engine());
  while (link.ReadStatus().state() != worker::v1::WORKER_STATE_READY) {
  }
  service_.Drain();
  while (link.ReadStatus().state() != worker::v1::WORKER_STATE_DRAINING) {
  }
}

TEST_F(WorkerServiceTest, AWorkerThatLoadsRefusesSoThatAnotherIsTried) {
  Link link(*stub_);
  link.Submit(1, 5);
  EXPECT_EQ(link.ReadToEnd(1).error(), worker::v1::SEQUENCE_ERROR_DRAINING);
}

TEST_F(WorkerServiceTest, TokensAreTheEnginesOwn) {
  service_.Attach(&group_.engine());
  EngineRequest request;
  request.prompt = {1, 5};
  request.max_tokens = 30;
  request.sampling.temperature = 0;
  const Completion expected = group_.Run(request);
  Link link(*stub_);
  link.Submit(1, 30);
  const auto update = link.ReadToEnd(1);
  EXPECT_EQ(std::vector<TokenId>(update.token_ids().begin(), update.token_ids().end()),
            expected.tokens);
  EXPECT_EQ(update.end(), worker::v1::SEQUENCE_END_LENGTH);
  EXPECT_TRUE(update.has_queue_microseconds());
  EXPECT_TRUE(update.has_cached_tokens());
}

TEST_F(WorkerServiceTest, AnInvalidSubmitFailsAloneAndSaysWhy) {
  service_.Attach(&group_.engine());
  Link link(*stub_);
  link.Submit(1, 5, /*prompt_token=*/999999);
  const auto refused = link.ReadToEnd(1);
  EXPECT_EQ(refused.error(), worker::v1::SEQUENCE_ERROR_INVALID);
  EXPECT_NE(refused.detail().find("prompt_ids"), std::string::npos) << refused.detail();
  link.Submit(2, 5);
  EXPECT_EQ(link.ReadToEnd(2).token_ids_size(), 5);
}

TEST_F(WorkerServiceTest, ASequenceIdIsUsedOnceAtATime) {
  service_.Attach(&group_.engine());
  Link link(*stub_);
  link.Submit(1, 900);
  link.Submit(1, 5);
  EXPECT_EQ(link.ReadToEnd(1).error(), worker::v1::SEQUENCE_ERROR_INVALID);
}

TEST_F(WorkerServiceTest, ACancelledSequenceGivesItsBlocksBack) {
  service_.Attach(&group_.engine());
  Link link(*stub_);
  link.Submit(1, 900);
  AwaitEngine([](const SchedulerCounters& counters) { return counters.kv_blocks_used > 0; });
  link.Cancel(1);
  AwaitEngine([](const SchedulerCounters& counters) {
    return counters.running == 0 && counters.kv_blocks_used == 0;
  });
}

TEST_F(WorkerServiceTest, ABrokenStreamGivesItsSequencesBlocksBackAndNobodyElses) {
  service_.Attach(&group_.engine());
  Link stays(*stub_);
  {
    Link leaves(*stub_);
    leaves.Submit(1, 900);
    leaves.Submit(2, 900);
    stays.Submit(1, 900);
    AwaitEngine([](const SchedulerCounters& counters) { return counters.running == 3; });
  }
  AwaitEngine([](const SchedulerCounters& counters) { return counters.running == 1; });
  stays.Cancel(1);
  AwaitEngine([](const SchedulerCounters& counters) { return counters.running == 0; });
}

TEST_F(WorkerServiceTest, WhileDrainingRunningSequencesFinishAndNewOnesAreRefused) {
  service_.Attach(&group_.engine());
  Link link(*stub_);
  link.Submit(1, 400);
  AwaitEngine([](const SchedulerCounters& counters) { return counters.running == 1; });
  service_.Drain();
  link.Submit(2, 5);
  EXPECT_EQ(link.ReadToEnd(2).error(), worker::v1::SEQUENCE_ERROR_DRAINING);
  EXPECT_TRUE(group_.engine().WaitIdle(absl::Now() + absl::Minutes(1)));
}

// The engine lives on a thread's stack and goes before the service does: a status asked for by the
// publisher, by a stream or by a drain must not reach it any more. What sanitizers see.
TEST(WorkerServiceLifetimeTest, ADetachedEngineMayGoWhileTheServiceStillPublishes) {
  WorkerService service(WorkerFacts(), /*status_interval=*/absl::Microseconds(50));
  for (int i = 0; i < 20; ++i) {
    TestGroup group({.checkpoint = "tiny"});
    service.Attach(&group.engine());
    EXPECT_EQ(service.Status().state(), worker::v1::WORKER_STATE_READY);
    absl::SleepFor(absl::Milliseconds(2));
    service.Detach();
    EXPECT_EQ(service.Status().state(), worker::v1::WORKER_STATE_LOADING);
  }
}

}  // namespace
}  // namespace marcoro
