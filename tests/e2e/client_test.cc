// Clients as they are: they vanish, do not read, give up, and come in crowds.
#include <signal.h>

#include <thread>

#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

constexpr char kCancelled[] = "marcoro_worker_sequences_finished_total{reason=\"cancelled\"}";
constexpr char kSlowReaders[] = "marcoro_slow_readers_total";

// Goes on for seconds.
v1::GenerateRequest EndlessRequest() {
  v1::GenerateRequest request = Sampled("Return", 4000, 1);
  request.set_n(8);
  return request;
}

TEST(ClientTest, CancellingFreesTheSequences) {
  Cluster cluster({.tp = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  Stream stream(cluster.client().inference(), EndlessRequest());
  ASSERT_TRUE(stream.ReadTokens(20));
  stream.Cancel();
  EXPECT_EQ(stream.Finish().status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(cluster.AwaitIdle());
  EXPECT_EQ(cluster.WorkerMetric(0, kCancelled), 8);
}

TEST(ClientTest, ACancelledUnaryCallFreesItsSequences) {
  Cluster cluster;
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  grpc::ClientContext context;
  v1::GenerateResponse response;
  grpc::Status status;
  std::thread caller([&] {
    status = cluster.client().inference().Generate(&context, EndlessRequest(), &response);
  });
  EXPECT_EQ(cluster.BusyReplica(), 0);
  context.TryCancel();
  caller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(cluster.AwaitIdle());
  EXPECT_EQ(cluster.WorkerMetric(0, kCancelled), 8);
}

TEST(ClientTest, AKilledClientFreesItsSequencesWithinAFewSteps) {
  Cluster cluster;
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  {
    Process client({MARCORO_E2E_CLIENT, cluster.address(), "--n=8", "--max-tokens=4000"});
    ASSERT_TRUE(client.AwaitOutput("token", absl::Seconds(20))) << client.err();
    EXPECT_EQ(cluster.BusyReplica(), 0);
    client.Signal(SIGKILL);
    const double steps = cluster.WorkerMetric(0, "marcoro_worker_steps_total");
    client.AwaitExit(absl::Seconds(5));
    EXPECT_TRUE(cluster.AwaitIdle());
    // 4000 steps would have followed; a connection's end takes some milliseconds to be seen.
    EXPECT_LT(cluster.WorkerMetric(0, "marcoro_worker_steps_total") - steps, 1000);
  }
  EXPECT_EQ(cluster.WorkerMetric(0, kCancelled), 8);
  EXPECT_TRUE(cluster.client().Generate(Greedy("Return", 4)).status.ok());
}

TEST(ClientTest, OneThatNeverReadsIsCutOffWhileOthersGoOn) {
  Cluster cluster({.flags = {"--write-timeout=1s"}});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  v1::GenerateRequest request = EndlessRequest();
  request.set_n(16);
  request.set_logprobs(20);  // megabytes: more than any window of a connection takes
  Client deaf(cluster.address());
  Stream unread(deaf.inference(), request);
  EXPECT_EQ(cluster.BusyReplica(), 0);
  const Reply other = cluster.client().GenerateStream(Greedy("Return", 50));
  EXPECT_TRUE(other.status.ok()) << other.status.error_message();
  EXPECT_TRUE(Eventually([&] { return cluster.CoordinatorMetric(kSlowReaders) == 1; }))
      << cluster.log();
  EXPECT_TRUE(cluster.AwaitIdle());
  EXPECT_EQ(cluster.WorkerMetric(0, kCancelled), 16);
  EXPECT_FALSE(unread.Finish().status.ok());
}

TEST(ClientTest, AStoppedClientIsCutOffToo) {
  Cluster cluster({.flags = {"--write-timeout=1s"}});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  Process client(
      {MARCORO_E2E_CLIENT, cluster.address(), "--n=16", "--max-tokens=4000", "--logprobs=20"});
  ASSERT_TRUE(client.AwaitOutput("token", absl::Seconds(20))) << client.err();
  client.Signal(SIGSTOP);
  EXPECT_TRUE(Eventually([&] { return cluster.CoordinatorMetric(kSlowReaders) == 1; }))
      << cluster.log();
  EXPECT_TRUE(cluster.AwaitIdle());
  EXPECT_EQ(cluster.WorkerMetric(0, kCancelled), 16);
}

TEST(ClientTest, ADeadlineEndsTheRequestAndFreesItsSequences) {
  Cluster cluster;
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const absl::Duration timeout = absl::Milliseconds(300) / TimeScale();
  EXPECT_EQ(cluster.client().Generate(EndlessRequest(), timeout).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(cluster.AwaitIdle());
  EXPECT_EQ(cluster.client().GenerateStream(EndlessRequest(), timeout).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(cluster.AwaitIdle());
  EXPECT_EQ(cluster.WorkerMetric(0, kCancelled), 16);
}

TEST(ClientTest, SixtyFourStreamsAtOnceAreAllServed) {
  Cluster cluster({.tp = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const auto request = [](int i) {
    return Sampled("The default value is", 20 + static_cast<uint32_t>(i) % 7, 1000 + i);
  };
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 64; ++i) {
    streams.push_back(std::make_unique<Stream>(cluster.client().inference(), request(i)));
  }
  for (int i = 0; i < 64; ++i) {
    const Reply reply = streams[i]->Finish();
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_EQ(reply.response.choices(0).token_ids_size(), 20 + i % 7);
    if (i % 16 == 0) {
      EXPECT_TRUE(Bits(reply.response) == Bits(cluster.client().Generate(request(i)).response))
          << i;
    }
  }
  EXPECT_TRUE(cluster.AwaitIdle());
}

// Each of these has to be refused in a way that tells the client when to come back.
void ExpectRefusedWithRetry(const Reply& reply, const std::string& reason) {
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
      << reply.status.error_message();
  EXPECT_EQ(ReasonOf(reply.status), reason);
  const auto retry = DetailOf<google::rpc::RetryInfo>(reply.status).retry_delay();
  EXPECT_GT(retry.seconds() * 1'000'000'000 + retry.nanos(), 0);
  EXPECT_EQ(reply.trailers.count("grpc-retry-pushback-ms"), 1u);
}

TEST(ClientTest, AFullQueueRefusesWithRetryInfoAndTheServerGoesOn) {
  Cluster cluster({.flags = {"--max-sequences=1", "--max-waiting=2"}});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  v1::GenerateRequest request = EndlessRequest();
  request.set_n(1);
  std::vector<std::unique_ptr<Stream>> held;
  held.push_back(std::make_unique<Stream>(cluster.client().inference(), request));
  ASSERT_TRUE(held[0]->ReadTokens(1));
  for (int i = 0; i < 2; ++i)
    held.push_back(std::make_unique<Stream>(cluster.client().inference(), request));
  ASSERT_TRUE(
      Eventually([&] { return cluster.WorkerMetric(0, "marcoro_worker_sequences_waiting") == 2; }));
  ExpectRefusedWithRetry(cluster.client().Generate(request), "QUEUE_FULL");
  ExpectRefusedWithRetry(cluster.client().GenerateStream(request), "QUEUE_FULL");
  EXPECT_EQ(cluster.CoordinatorMetric("marcoro_admission_rejections_total{reason=\"queue_full\"}"),
            2);
  for (auto& stream : held) stream->Cancel();
  held.clear();
  EXPECT_TRUE(cluster.AwaitIdle());
  EXPECT_TRUE(cluster.client().Generate(Greedy("Return", 4)).status.ok());
}

TEST(ClientTest, TooManyRequestsAreRefusedWithRetryInfo) {
  Cluster cluster({.flags = {"--max-requests=1"}});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  Stream held(cluster.client().inference(), EndlessRequest());
  ASSERT_TRUE(held.ReadTokens(1));
  ExpectRefusedWithRetry(cluster.client().Generate(Greedy("Return", 4)), "TOO_MANY_REQUESTS");
  held.Cancel();
  held.Finish();
  EXPECT_TRUE(
      Eventually([&] { return cluster.client().Generate(Greedy("Return", 4)).status.ok(); }));
}

TEST(ClientTest, ARequestThatWaitsTooLongForItsPrefillFails) {
  Cluster cluster({.flags = {"--max-sequences=1", "--queue-timeout=200ms"}});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  v1::GenerateRequest request = EndlessRequest();
  request.set_n(1);
  Stream held(cluster.client().inference(), request);
  ASSERT_TRUE(held.ReadTokens(1));
  const Reply late = cluster.client().Generate(Greedy("Return", 4));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED)
      << late.status.error_message();
  EXPECT_EQ(ReasonOf(late.status), "DEADLINE");
  held.Cancel();
}

}  // namespace
}  // namespace marcoro
