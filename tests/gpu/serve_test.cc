// The real programs on a GPU, over real sockets: what they answer, that ranks sharing the GPU
// change no bit of it, and that a worker's death does not either. MARCORO_PROOF_BACKEND names
// another backend than cuda, to try this test where no GPU is.
#include <signal.h>

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"
#include "tests/e2e/golden.h"

namespace marcoro {
namespace {

// Below it, BF16 activations may choose the other of two tokens.
constexpr double kClearGap = 0.05;
// Of a log-probability with BF16 activations.
constexpr double kTolerance = 0.1;

ClusterOptions OnGpu(ClusterOptions options = {}) {
  const char* backend = std::getenv("MARCORO_PROOF_BACKEND");
  options.flags.push_back(std::string("--backend=") + (backend == nullptr ? "cuda" : backend));
  return options;
}

// Greedy and drawn, short and long.
std::vector<v1::GenerateRequest> Requests() {
  std::string long_prompt;
  for (int i = 0; i < 40; ++i) long_prompt += "If the file does not exist, raise an error. ";
  std::vector<v1::GenerateRequest> requests = {
      Greedy("Return", 48),        Greedy(long_prompt, 32),     Sampled("This class", 64, 1),
      Sampled(long_prompt, 24, 2), Sampled("Decorator", 40, 3), Sampled("The", 40, 4)};
  requests[2].set_n(3);
  requests[3].set_top_k(12);
  requests[3].set_repetition_penalty(1.2f);
  requests[4].set_top_p(0.7f);
  requests[4].set_presence_penalty(0.5f);
  requests[5].set_prompt_logprobs(2);
  for (v1::GenerateRequest& request : requests) request.set_logprobs(3);
  return requests;
}

std::string BitsOf(const Reply& reply) {
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  return Bits(reply.response);
}

std::vector<std::string> Alone(Client& client) {
  std::vector<std::string> bits;
  for (const v1::GenerateRequest& request : Requests()) {
    bits.push_back(BitsOf(client.Generate(request)));
  }
  return bits;
}

std::vector<std::string> StreamedTogether(Client& client) {
  const std::vector<v1::GenerateRequest> requests = Requests();
  std::vector<std::string> bits(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] { bits[i] = BitsOf(client.GenerateStream(requests[i])); });
  }
  for (std::thread& thread : threads) thread.join();
  return bits;
}

// One rank, one request at a time.
std::vector<std::string> Expected() {
  Cluster cluster(OnGpu());
  EXPECT_TRUE(cluster.ready()) << cluster.log();
  return cluster.ready() ? Alone(cluster.client()) : std::vector<std::string>();
}

// Rank 0's process, which is not its first argument's where a packed loader runs it.
pid_t WorkerOf(Cluster& cluster, int replica) {
  const std::string metrics =
      "--metrics=127.0.0.1:" + std::to_string(cluster.worker_metrics_port(replica));
  for (const Child& child : ChildrenOf(cluster.serve().pid())) {
    for (const std::string& argument : child.arguments) {
      if (argument == metrics) return child.pid;
    }
  }
  return 0;
}

class TensorParallelTest : public testing::TestWithParam<int> {};

TEST_P(TensorParallelTest, RanksThatShareTheGpuGiveTheBitsOfOne) {
  const std::vector<std::string> expected = Expected();
  ASSERT_FALSE(expected.empty());
  Cluster cluster(OnGpu({.tp = GetParam()}));
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  EXPECT_TRUE(Alone(cluster.client()) == expected) << "one after the other";
  EXPECT_TRUE(StreamedTogether(cluster.client()) == expected) << "all at once";
}

INSTANTIATE_TEST_SUITE_P(Ranks, TensorParallelTest, testing::Values(2, 4),
                         testing::PrintToStringParamName());

TEST(EndToEndTest, GreedyAnswersEqualTheReferenceWhileItsChoiceIsClear) {
  Cluster cluster(OnGpu());
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  size_t compared = 0;
  for (const GoldenPrompt& prompt : LoadGolden("small")) {
    SCOPED_TRACE(prompt.text.substr(0, 40));
    v1::GenerateRequest request = Greedy("", 40);
    request.mutable_token_ids()->mutable_ids()->Add(prompt.ids.begin(), prompt.ids.end());
    request.set_logprobs(0);
    const Reply reply = cluster.client().Generate(request);
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    const v1::Choice& choice = reply.response.choices(0);
    ASSERT_EQ(choice.token_ids_size(), 40);
    const GoldenGreedy& expected = prompt.greedy_fp8;
    for (int i = 0; i < 40 && expected.gaps[i] >= kClearGap; ++i, ++compared) {
      ASSERT_EQ(choice.token_ids(i), expected.ids[i]) << "step " << i;
      EXPECT_NEAR(choice.logprobs(i).logprob(), expected.logprobs[i], kTolerance) << "step " << i;
    }
  }
  EXPECT_GE(compared, 80u) << "the goldens leave too little to compare";
}

TEST(EndToEndTest, RequestsAtOnceGiveTheBitsOfLoneOnes) {
  Cluster cluster(OnGpu());
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const std::vector<std::string> alone = Alone(cluster.client());
  EXPECT_TRUE(StreamedTogether(cluster.client()) == alone);
}

TEST(EndToEndTest, AStreamGoesOnInTheOtherReplicaWhenItsWorkerIsKilled) {
  Cluster cluster(OnGpu({.replicas = 2}));
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  v1::GenerateRequest request = Sampled("If the file does not exist", 1200, 17);
  request.set_logprobs(2);
  const std::string undisturbed = BitsOf(cluster.client().Generate(request));
  Stream stream(cluster.client().inference(), request);
  ASSERT_TRUE(stream.ReadTokens(100)) << stream.Finish().status.error_message();
  const int replica = cluster.BusyReplica();
  ASSERT_GE(replica, 0) << "the request was over before the fault";
  const pid_t worker = WorkerOf(cluster, replica);
  ASSERT_GT(worker, 0) << cluster.log();
  kill(worker, SIGKILL);
  EXPECT_TRUE(BitsOf(stream.Finish()) == undisturbed) << "the bits changed";
  EXPECT_GT(cluster.CoordinatorMetric("marcoro_replayed_sequences_total"), 0);
  EXPECT_TRUE(cluster.AwaitAllReplicas()) << cluster.log();
}

}  // namespace
}  // namespace marcoro
