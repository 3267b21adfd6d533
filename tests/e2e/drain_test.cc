// SIGTERM: no new work, the running one to its end, exit code 0.
#include <signal.h>

#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

using Health = grpc::health::v1::HealthCheckResponse;

v1::GenerateRequest LongRequest() {
  v1::GenerateRequest request = Sampled("Return", 2000, 3);
  request.set_logprobs(1);
  request.set_n(4);
  return request;
}

TEST(DrainTest, RunningStreamsFinishWholeWhileNewOnesAreRefused) {
  Cluster cluster({.tp = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const Reply undisturbed = cluster.client().Generate(LongRequest());
  ASSERT_TRUE(undisturbed.status.ok());
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("marcoro.v1.InferenceService");
  const auto watch = cluster.client().health().Watch(&context, request);
  Health health;
  ASSERT_TRUE(watch->Read(&health));
  ASSERT_EQ(health.status(), Health::SERVING);

  Stream stream(cluster.client().inference(), LongRequest());
  ASSERT_TRUE(stream.ReadTokens(40));
  cluster.serve().Signal(SIGTERM);
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_EQ(health.status(), Health::NOT_SERVING);
  const Reply refused = cluster.client().Generate(Greedy("Return", 1));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE)
      << refused.status.error_message();
  EXPECT_EQ(ReasonOf(refused.status), "DRAINING");
  const Reply whole = stream.Finish();
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message() << cluster.log();
  EXPECT_TRUE(Bits(whole.response) == Bits(undisturbed.response));
  context.TryCancel();
  watch->Finish();
  EXPECT_EQ(cluster.serve().AwaitExit(absl::Seconds(20)), std::optional<int>(0)) << cluster.log();
}

TEST(DrainTest, AStreamLongerThanTheTimeoutEndsWithFinishReasonCancelled) {
  Cluster cluster({.flags = {"--drain-timeout=200ms"}});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  v1::GenerateRequest request = LongRequest();
  request.set_n(16);
  request.set_max_tokens(4000);
  Stream stream(cluster.client().inference(), request);
  ASSERT_TRUE(stream.ReadTokens(40));
  cluster.serve().Signal(SIGTERM);
  const Reply cut = stream.Finish();
  ASSERT_TRUE(cut.status.ok()) << cut.status.error_message() << cluster.log();
  ASSERT_EQ(cut.response.choices_size(), 16);
  for (const v1::Choice& choice : cut.response.choices()) {
    EXPECT_EQ(choice.finish_reason(), v1::FINISH_REASON_CANCELLED);
  }
  EXPECT_GT(cut.response.usage().generated_tokens(), 0u);
  EXPECT_EQ(cluster.serve().AwaitExit(absl::Seconds(20)), std::optional<int>(0)) << cluster.log();
}

TEST(DrainTest, AnIdleServerEndsAtOnce) {
  Cluster cluster({.tp = 2, .replicas = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  EXPECT_EQ(cluster.Stop(absl::Seconds(10)), std::optional<int>(0)) << cluster.log();
}

TEST(DrainTest, ControlCEndsTheServerAsSigtermDoes) {
  Cluster cluster;
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  cluster.serve().Signal(SIGINT);
  EXPECT_EQ(cluster.serve().AwaitExit(absl::Seconds(10)), std::optional<int>(0)) << cluster.log();
}

TEST(DrainTest, AWorkerThatIsToldToStopByItselfHandsItsStreamsOn) {
  Cluster cluster({.replicas = 2, .flags = {"--drain-timeout=30s"}});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const Reply undisturbed = cluster.client().Generate(LongRequest());
  Stream stream(cluster.client().inference(), LongRequest());
  ASSERT_TRUE(stream.ReadTokens(40));
  const int replica = cluster.BusyReplica();
  ASSERT_GE(replica, 0);
  kill(cluster.WorkerPid(replica, 0), SIGTERM);
  const Reply whole = stream.Finish();
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message() << cluster.log();
  EXPECT_TRUE(Bits(whole.response) == Bits(undisturbed.response));
  EXPECT_TRUE(cluster.AwaitAllReplicas()) << cluster.log();
}

}  // namespace
}  // namespace marcoro
