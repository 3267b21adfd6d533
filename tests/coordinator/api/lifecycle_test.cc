// How requests end other than by themselves: refused, cancelled, out of time, with a client that
// does not read, in a drain.
#include <future>
#include <thread>

#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/coordinator/api/api_fixture.h"

namespace marcoro {
namespace {

using grpc::StatusCode;
using grpc::health::v1::HealthCheckResponse;
using testing::ElementsAre;
using worker::v1::SEQUENCE_END_LENGTH;

class LifecycleTest : public ApiTest {
 protected:
  void ServeWith(const ApiLimits& limits) {
    ApiServerOptions options;
    options.limits = limits;
    Serve("tiny", options);
  }

  HealthCheckResponse::ServingStatus Health(const std::string& service) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    const grpc::Status status =
        grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status();
  }

  // Sends updates with much in them until the sequence has been given up; false if it never is.
  bool FloodUntilCancelled(size_t index) {
    worker::v1::SequenceUpdate update = Tokens({20});
    worker::v1::TokenLogprobs* logprobs = update.add_logprobs();
    for (uint32_t i = 0; i < 20; ++i) logprobs->add_top()->set_token_id(100 + i);
    const absl::Time give_up = absl::Now() + absl::Seconds(30);
    while (router_->cancelled() == 0 && absl::Now() < give_up) router_->Send(index, update);
    return router_->cancelled() == 1;
  }
};

TEST_F(LifecycleTest, ACancelledStreamFreesItsSequences) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Prompt("hi");
  request.set_n(2);
  auto reader = inference_->GenerateStream(&context, request);
  ASSERT_TRUE(router_->WaitForSubmits(2));
  router_->Send(0, Tokens({20}));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  context.TryCancel();
  EXPECT_TRUE(router_->WaitForCancelled(2));
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
}

TEST_F(LifecycleTest, ACancelledUnaryCallFreesItsSequence) {
  grpc::ClientContext context;
  std::future<grpc::Status> call = std::async(std::launch::async, [&] {
    v1::GenerateResponse response;
    return inference_->Generate(&context, Prompt("hi"), &response);
  });
  ASSERT_TRUE(router_->WaitForSubmits(1));
  context.TryCancel();
  EXPECT_TRUE(router_->WaitForCancelled(1));
  EXPECT_EQ(call.get().error_code(), StatusCode::CANCELLED);
}

TEST_F(LifecycleTest, AClientThatIsGoneFreesItsSequence) {
  {
    grpc::ChannelArguments own_connection;
    own_connection.SetInt("of its own", 1);
    auto channel =
        grpc::CreateCustomChannel(target(), grpc::InsecureChannelCredentials(), own_connection);
    grpc::ClientContext context;
    auto reader = v1::InferenceService::NewStub(channel)->GenerateStream(&context, Prompt("hi"));
    ASSERT_TRUE(router_->WaitForSubmits(1));
  }
  EXPECT_TRUE(router_->WaitForCancelled(1));
}

TEST_F(LifecycleTest, TheClientsDeadlineEndsTheCallAndBoundsTheQueue) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  v1::GenerateResponse response;
  const grpc::Status status = inference_->Generate(&context, Prompt("hi"), &response);
  EXPECT_EQ(status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(router_->WaitForCancelled(1));
  const uint64_t queue_timeout = router_->submits().at(0).queue_timeout_microseconds();
  EXPECT_GT(queue_timeout, 0u);
  EXPECT_LE(queue_timeout, 1'000'000u);  // the deadline travels rounded up
}

TEST_F(LifecycleTest, WithoutADeadlineTheServersQueueTimeoutHolds) {
  ApiLimits limits;
  limits.queue_timeout = absl::Seconds(7);
  ServeWith(limits);
  router_->SetFailure(absl::DeadlineExceededError("not begun in time"));
  const CallError error = Refusal(Prompt("hi"));
  EXPECT_EQ(error.code, StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(error.reason, "DEADLINE");
  EXPECT_EQ(router_->submits().at(0).queue_timeout_microseconds(), 7'000'000u);
}

TEST_F(LifecycleTest, FullQueuesSayWhenToComeBack) {
  router_->SetFailure(absl::ResourceExhaustedError("every queue is full"));
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = inference_->Generate(&context, Prompt("hi"), &response);
  const CallError error = ErrorOf(status);
  EXPECT_EQ(error.code, StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(error.reason, "QUEUE_FULL");
  ASSERT_TRUE(error.retry_seconds.has_value());
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto pushback = trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, trailers.end());
  EXPECT_EQ(std::stod(std::string(pushback->second.data(), pushback->second.size())),
            *error.retry_seconds * 1000);
}

TEST_F(LifecycleTest, NoReplicaIsUnavailable) {
  router_->SetFailure(absl::UnavailableError("no replica is ready"));
  const CallError error = Refusal(Prompt("hi"));
  EXPECT_EQ(error.code, StatusCode::UNAVAILABLE);
  EXPECT_EQ(error.reason, "NO_REPLICA");
  EXPECT_TRUE(error.retry_seconds.has_value());
}

// gRPC clients retry by themselves as long as no headers have come: a failure before the first
// token costs them nothing.
TEST_F(LifecycleTest, AFailureBeforeTheFirstTokenCanBeRetriedByTheClientLibrary) {
  router_->SetFailure(absl::UnavailableError("no replica is ready"), /*count=*/1);
  router_->SetScript([attempt = 0](const worker::v1::Submit&) mutable {
    return attempt++ == 0 ? FakeRouter::Script() : OneByOne({20}, SEQUENCE_END_LENGTH);
  });
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(R"({"methodConfig": [{
      "name": [{"service": "marcoro.v1.InferenceService"}],
      "retryPolicy": {"maxAttempts": 2, "initialBackoff": "0.01s", "maxBackoff": "0.01s",
                      "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]})");
  auto stub = v1::InferenceService::NewStub(
      grpc::CreateCustomChannel(target(), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  auto reader = stub->GenerateStream(&context, Prompt("hi"));
  v1::GenerateStreamResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_THAT(message.choices(0).token_ids(), ElementsAre(20));
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(LifecycleTest, MoreRequestsThanAllowedAreRefused) {
  AdmissionOptions admission;
  admission.max_requests = 1;
  Serve("tiny", {}, admission);
  grpc::ClientContext context;
  auto reader = inference_->GenerateStream(&context, Prompt("hi"));
  ASSERT_TRUE(router_->WaitForSubmits(1));
  const CallError error = Refusal(Prompt("hi"));
  EXPECT_EQ(error.code, StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(error.reason, "TOO_MANY_REQUESTS");
  EXPECT_TRUE(error.retry_seconds.has_value());
  // Once the first has ended there is room again.
  router_->Send(0, Tokens({20}, SEQUENCE_END_LENGTH));
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  router_->SetScript([](const worker::v1::Submit&) { return OneByOne({20}, SEQUENCE_END_LENGTH); });
  v1::GenerateResponse response;
  EXPECT_TRUE(Generate(Prompt("hi"), &response).ok());
}

TEST_F(LifecycleTest, AStreamThatNobodyReadsIsBounded) {
  ApiLimits limits;
  limits.max_pending_tokens = 64;
  ServeWith(limits);
  grpc::ClientContext context;
  v1::GenerateRequest request = Prompt("hi");
  request.set_logprobs(20);
  auto reader = inference_->GenerateStream(&context, request);
  ASSERT_TRUE(router_->WaitForSubmits(1));
  ASSERT_TRUE(FloodUntilCancelled(0));
  // A client that wakes up reads what had been sent, and then why there is no more.
  v1::GenerateStreamResponse message;
  int messages = 0;
  while (reader->Read(&message)) ++messages;
  EXPECT_GT(messages, 0);
  const CallError error = ErrorOf(reader->Finish());
  EXPECT_EQ(error.code, StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(error.reason, "SLOW_READER");
}

TEST_F(LifecycleTest, AStuckWriteIsCancelled) {
  ApiLimits limits;
  limits.max_pending_tokens = 1'000'000'000;
  limits.write_timeout = absl::Milliseconds(100);
  ServeWith(limits);
  grpc::ClientContext context;
  v1::GenerateRequest request = Prompt("hi");
  request.set_logprobs(20);
  auto reader = inference_->GenerateStream(&context, request);
  ASSERT_TRUE(router_->WaitForSubmits(1));
  ASSERT_TRUE(FloodUntilCancelled(0));
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
}

TEST_F(LifecycleTest, HealthIsLivenessForTheServerAndReadinessForItsServices) {
  const auto eventually = [this](const std::string& service,
                                 HealthCheckResponse::ServingStatus wanted) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    auto watch = grpc::health::v1::Health::NewStub(channel_)->Watch(&context, request);
    HealthCheckResponse response;
    while (watch->Read(&response)) {
      if (response.status() == wanted) return true;
    }
    return false;
  };
  EXPECT_TRUE(eventually("marcoro.v1.InferenceService", HealthCheckResponse::SERVING));
  EXPECT_TRUE(eventually("marcoro.v1.ModelService", HealthCheckResponse::SERVING));
  ReplicaSummary none;
  none.configured = 1;
  router_->SetSummary(none);
  EXPECT_TRUE(eventually("marcoro.v1.InferenceService", HealthCheckResponse::NOT_SERVING));
  EXPECT_TRUE(eventually("marcoro.v1.ModelService", HealthCheckResponse::NOT_SERVING));
  EXPECT_EQ(Health(""), HealthCheckResponse::SERVING);

  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("marcoro.v1.Nothing");
  HealthCheckResponse response;
  EXPECT_EQ(
      grpc::health::v1::Health::NewStub(channel_)->Check(&context, request, &response).error_code(),
      StatusCode::NOT_FOUND);
}

TEST_F(LifecycleTest, ADrainLetsRunningRequestsFinishAndTakesNoNewOnes) {
  grpc::ClientContext context;
  auto reader = inference_->GenerateStream(&context, Prompt("hi"));
  ASSERT_TRUE(router_->WaitForSubmits(1));
  std::thread drain([this] { server_->Drain(absl::Seconds(60)); });
  CallError error;
  do {
    grpc::ClientContext other;
    other.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
    v1::GenerateResponse response;
    error = ErrorOf(inference_->Generate(&other, Prompt("hi"), &response));
  } while (error.code == StatusCode::DEADLINE_EXCEEDED);  // the drain has not begun yet
  EXPECT_EQ(error.code, StatusCode::UNAVAILABLE);
  EXPECT_EQ(error.reason, "DRAINING");
  EXPECT_EQ(Health("marcoro.v1.InferenceService"), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Health(""), HealthCheckResponse::SERVING);
  router_->Send(0, Tokens({20}));
  router_->Send(0, Tokens({21}, SEQUENCE_END_LENGTH));
  std::vector<uint32_t> ids;
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
    for (const v1::Choice& choice : message.choices()) {
      ids.insert(ids.end(), choice.token_ids().begin(), choice.token_ids().end());
    }
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(ids, ElementsAre(20, 21));
  drain.join();
}

TEST_F(LifecycleTest, WhatOutlastsTheDrainEndsAsCancelledWithWhatItHas) {
  grpc::ClientContext context;
  v1::GenerateRequest request = Prompt("hi");
  request.add_stop(std::string("abcd"));
  auto reader = inference_->GenerateStream(&context, request);
  ASSERT_TRUE(router_->WaitForSubmits(1));
  router_->Send(0,
                Tokens({ByteToken('a'), ByteToken('b')}));  // held back: may become the stop text
  std::thread drain([this] { server_->Drain(absl::Milliseconds(50)); });
  std::string text;
  v1::GenerateStreamResponse last;
  v1::GenerateStreamResponse message;
  while (reader->Read(&message)) {
    for (const v1::Choice& choice : message.choices()) text += choice.text();
    last = message;
  }
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(last.choices_size(), 1);
  EXPECT_EQ(last.choices(0).finish_reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(text, "ab");
  EXPECT_EQ(last.usage().generated_tokens(), 2u);
  drain.join();
  EXPECT_EQ(router_->cancelled(), 1);
}

TEST_F(LifecycleTest, APortInUseIsRefusedWithAdvice) {
  ApiServerOptions options;
  options.listen = target();
  const auto second = ApiServer::Start({*model_, *router_, *admission_, *metrics_}, options);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              testing::AllOf(testing::HasSubstr(target()), testing::HasSubstr("--listen")));
}

}  // namespace
}  // namespace marcoro
