// A crash is not an error: a client whose worker dies in mid-stream sees a pause, and then the same
// bytes as ever.
#include <signal.h>

#include <random>

#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

constexpr char kReplays[] = "marcoro_replayed_sequences_total";

// Long enough to be killed in its middle.
v1::GenerateRequest LongRequest(uint64_t seed, uint32_t tokens = 1200) {
  v1::GenerateRequest request = Sampled("If the file does not exist", tokens, seed);
  request.set_logprobs(2);
  request.set_n(2);
  return request;
}

// Runs the request; when `tokens` have come, `fault` strikes the replica that runs it. The answer
// is to be the undisturbed one.
void ExpectToSurvive(Cluster& cluster, const v1::GenerateRequest& request,
                     const std::string& undisturbed, size_t tokens,
                     const std::function<void(int replica)>& fault) {
  Stream stream(cluster.client().inference(), request);
  ASSERT_TRUE(stream.ReadTokens(tokens)) << stream.Finish().status.error_message();
  const int replica = cluster.BusyReplica();
  ASSERT_GE(replica, 0) << "the request was over before the fault";
  fault(replica);
  const Reply reply = stream.Finish();
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message() << cluster.log();
  EXPECT_EQ(reply.response.choices(0).token_ids_size(), request.max_tokens());
  EXPECT_TRUE(Bits(reply.response) == undisturbed) << "the bits changed";
}

void ExpectFailover(const ClusterOptions& options,
                    const std::function<void(Cluster&, int replica)>& fault,
                    uint32_t tokens = 1200) {
  Cluster cluster(options);
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const v1::GenerateRequest request = LongRequest(17, tokens);
  const Reply undisturbed = cluster.client().Generate(request);
  ASSERT_TRUE(undisturbed.status.ok()) << undisturbed.status.error_message();
  EXPECT_EQ(cluster.CoordinatorMetric(kReplays), 0);
  ExpectToSurvive(cluster, request, Bits(undisturbed.response), 150,
                  [&](int replica) { fault(cluster, replica); });
  EXPECT_GT(cluster.CoordinatorMetric(kReplays), 0);
  EXPECT_TRUE(cluster.AwaitAllReplicas()) << cluster.log();
  EXPECT_TRUE(cluster.AwaitIdle());
  const Reply again = cluster.client().Generate(request);
  EXPECT_TRUE(Bits(again.response) == Bits(undisturbed.response))
      << "the bits changed after the restart";
}

TEST(FailoverTest, AStreamGoesOnInTheOtherReplicaWhenItsWorkerIsKilled) {
  ExpectFailover({.replicas = 2}, [](Cluster& cluster, int replica) {
    kill(cluster.WorkerPid(replica, 0), SIGKILL);
  });
}

TEST(FailoverTest, AStreamGoesOnWhenAPeerRankIsKilled) {
  ExpectFailover({.tp = 2, .replicas = 2}, [](Cluster& cluster, int replica) {
    kill(cluster.WorkerPid(replica, 1), SIGKILL);
  });
}

TEST(FailoverTest, AStreamGoesOnWhenRankZeroOfAGroupIsKilled) {
  ExpectFailover({.tp = 2, .replicas = 2}, [](Cluster& cluster, int replica) {
    kill(cluster.WorkerPid(replica, 0), SIGKILL);
  });
}

TEST(FailoverTest, AStreamGoesOnWhenAPeerRankHangs) {
  ExpectFailover(
      {.tp = 2, .replicas = 2, .flags = {"--collective-timeout=4s"}},
      [](Cluster& cluster, int replica) { kill(cluster.WorkerPid(replica, 1), SIGSTOP); });
}

TEST(FailoverTest, AStreamGoesOnWhenAPeerRankHangsOverGloo) {
  ExpectFailover(
      {.tp = 2, .replicas = 2, .flags = {"--collective-timeout=4s", "--collective=gloo"}},
      [](Cluster& cluster, int replica) { kill(cluster.WorkerPid(replica, 1), SIGSTOP); },
      /*tokens=*/400);  // ranks that share cores over TCP wait for each other's turns
}

TEST(FailoverTest, AStreamOfTheOnlyReplicaPausesUntilItsGroupIsBack) {
  ExpectFailover({.tp = 2}, [](Cluster& cluster, int replica) {
    kill(cluster.WorkerPid(replica, 0), SIGKILL);
  });
}

TEST(FailoverTest, RepeatedKillsAtRandomMomentsChangeNoBit) {
  Cluster cluster({.tp = 2, .replicas = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  std::mt19937 random(20260214);
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    const v1::GenerateRequest request = LongRequest(100 + static_cast<uint64_t>(round));
    const Reply undisturbed = cluster.client().Generate(request);
    ASSERT_TRUE(undisturbed.status.ok()) << undisturbed.status.error_message();
    const size_t tokens = std::uniform_int_distribution<size_t>(1, 1000)(random);
    const int rank = std::uniform_int_distribution<int>(0, 1)(random);
    ExpectToSurvive(cluster, request, Bits(undisturbed.response), tokens,
                    [&](int replica) { kill(cluster.WorkerPid(replica, rank), SIGKILL); });
  }
  EXPECT_TRUE(cluster.AwaitAllReplicas()) << cluster.log();
}

TEST(FailoverTest, BothReplicasMayDieDuringOneStream) {
  Cluster cluster({.replicas = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const v1::GenerateRequest request = LongRequest(5);
  const Reply undisturbed = cluster.client().Generate(request);
  ExpectToSurvive(cluster, request, Bits(undisturbed.response), 60, [&](int replica) {
    const pid_t first = cluster.WorkerPid(replica, 0);
    const pid_t second = cluster.WorkerPid(1 - replica, 0);
    kill(first, SIGKILL);
    kill(second, SIGKILL);
  });
}

TEST(FailoverTest, ADeadCoordinatorIsStartedAgainAndItsSequencesAreFreed) {
  Cluster cluster({.tp = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  v1::GenerateRequest request = LongRequest(9);
  request.set_n(8);
  request.set_max_tokens(4000);
  Stream stream(cluster.client().inference(), request);
  ASSERT_TRUE(stream.ReadTokens(20));
  ASSERT_EQ(cluster.BusyReplica(), 0);
  kill(cluster.CoordinatorPid(), SIGKILL);
  EXPECT_EQ(stream.Finish().status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(cluster.AwaitIdle()) << cluster.log();
  EXPECT_EQ(
      cluster.WorkerMetric(0, "marcoro_worker_sequences_finished_total{reason=\"cancelled\"}"), 8);
  EXPECT_TRUE(cluster.AwaitAllReplicas()) << cluster.log();
  EXPECT_TRUE(Eventually([&] {
    return cluster.client().Generate(Greedy("Return", 4)).status.ok();
  })) << cluster.log();
}

TEST(FailoverTest, NothingIsLeftWhenServeItselfIsKilled) {
  const int port = FreePorts(3);
  Process serve({Program("marcoro"), "serve", "--model=" + ModelFolder("tiny"), "--tp=2",
                 "--listen=127.0.0.1:" + std::to_string(port),
                 "--metrics=127.0.0.1:" + std::to_string(port + 1)});
  ASSERT_TRUE(serve.AwaitOutput("ready:", absl::Seconds(60))) << serve.err();
  EXPECT_EQ(ChildrenOf(serve.pid()).size(), 3u);
  serve.Signal(SIGKILL);
  EXPECT_EQ(serve.AwaitExit(absl::Seconds(5)), std::optional<int>(128 + SIGKILL));
  EXPECT_TRUE(serve.AwaitTreeGone(absl::Seconds(5)));
}

}  // namespace
}  // namespace marcoro
