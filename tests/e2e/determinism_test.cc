// A token never changes: the same requests give the same bytes on every kind of server.
#include <thread>

#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

// Greedy and drawn, short and long, with every kind of option that changes tokens.
std::vector<v1::GenerateRequest> Requests() {
  const std::string long_prompt = [] {
    std::string text;
    for (int i = 0; i < 40; ++i) text += "If the file does not exist, raise an error. ";
    return text;
  }();
  std::vector<v1::GenerateRequest> requests = {
      Greedy("Return", 48),           Greedy("The default value is", 17),
      Greedy(long_prompt, 32),        Sampled("This class", 64, 1),
      Sampled("Create a new", 40, 2), Sampled(long_prompt, 24, 3),
      Sampled("日本語 and", 33, 4),   Sampled("Return", 1, 5),
      Sampled("Return", 50, 6),       Sampled("    >>> x = ", 40, 7),
      Sampled("Decorator", 40, 8),    Sampled("The", 40, 9)};
  requests[8].set_n(3);
  requests[9].set_top_k(12);
  requests[9].set_repetition_penalty(1.2f);
  requests[10].set_top_p(0.7f);
  requests[10].set_presence_penalty(0.5f);
  requests[11].set_prompt_logprobs(2);
  for (v1::GenerateRequest& request : requests) request.set_logprobs(3);
  return requests;
}

std::vector<std::string> Alone(Client& client) {
  std::vector<std::string> bits;
  for (const v1::GenerateRequest& request : Requests()) {
    const Reply reply = client.Generate(request);
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    bits.push_back(Bits(reply.response));
  }
  return bits;
}

std::vector<std::string> Streamed(Client& client) {
  std::vector<std::string> bits;
  for (const v1::GenerateRequest& request : Requests()) {
    const Reply reply = client.GenerateStream(request);
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    bits.push_back(Bits(reply.response));
  }
  return bits;
}

std::vector<std::string> Together(Client& client) {
  const std::vector<v1::GenerateRequest> requests = Requests();
  std::vector<std::string> bits(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      const Reply reply =
          i % 2 == 0 ? client.Generate(requests[i]) : client.GenerateStream(requests[i]);
      EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
      bits[i] = Bits(reply.response);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return bits;
}

// The oracle: one process, one request at a time.
std::vector<std::string> Expected(const std::vector<std::string>& flags) {
  Cluster cluster({.flags = flags});
  EXPECT_TRUE(cluster.ready()) << cluster.log();
  return cluster.ready() ? Alone(cluster.client()) : std::vector<std::string>();
}

// `numerics`: flags that change bits, for both.
void ExpectSameBits(ClusterOptions options, const std::vector<std::string>& numerics = {}) {
  const std::vector<std::string> expected = Expected(numerics);
  options.flags.insert(options.flags.end(), numerics.begin(), numerics.end());
  ASSERT_EQ(expected.size(), 12u);
  Cluster cluster(options);
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  EXPECT_TRUE(Alone(cluster.client()) == expected) << "one after the other";
  EXPECT_TRUE(Streamed(cluster.client()) == expected) << "streamed, with a warm prefix cache";
  EXPECT_TRUE(Together(cluster.client()) == expected) << "all at once";
}

TEST(DeterminismTest, OneRankGivesTheSameBitsAloneStreamedAndTogether) { ExpectSameBits({}); }

TEST(DeterminismTest, TwoRanksGiveTheBitsOfOne) { ExpectSameBits({.tp = 2}); }

TEST(DeterminismTest, FourRanksGiveTheBitsOfOne) { ExpectSameBits({.tp = 4}); }

TEST(DeterminismTest, EightRanksGiveTheBitsOfOne) { ExpectSameBits({.tp = 8}); }

TEST(DeterminismTest, TwoReplicasGiveTheBitsOfOne) {
  ExpectSameBits({.replicas = 2, .flags = {"--policy=round_robin"}});
}

TEST(DeterminismTest, TwoReplicasOfTwoRanksGiveTheBitsOfOne) {
  ExpectSameBits({.tp = 2, .replicas = 2, .flags = {"--policy=round_robin"}});
}

TEST(DeterminismTest, GlooGivesTheBitsOfOneProcess) {
  ExpectSameBits({.tp = 2, .flags = {"--collective=gloo"}});
}

TEST(DeterminismTest, FourRanksOverGlooGiveTheBitsOfOneProcess) {
  ExpectSameBits({.tp = 4, .flags = {"--collective=gloo"}});
}

TEST(DeterminismTest, SharedMemoryGivesTheBitsOfOneProcess) {
  ExpectSameBits({.tp = 2, .flags = {"--collective=shared-memory"}});
}

TEST(DeterminismTest, SmallStepsAndNoPrefixCacheGiveTheSameBits) {
  ExpectSameBits(
      {.tp = 2, .flags = {"--max-step-tokens=7", "--no-prefix-cache", "--max-sequences=3"}});
}

TEST(DeterminismTest, PreemptionGivesTheSameBits) {
  // The long prompts hold most of it, so that the others drive each other out.
  ExpectSameBits({.flags = {"--kv-tokens=1024", "--no-prefix-cache"}});
}

TEST(DeterminismTest, KernelFamiliesReportDifferentFingerprints) {
  std::vector<std::string> fingerprints;
  for (const char* backend : {"avx2", "avx512"}) {
    Cluster cluster({.flags = {std::string("--backend=") + backend}});
    if (!cluster.ready() && std::string(backend) == "avx512") {
      GTEST_SKIP() << "this processor has no AVX-512 BF16";
    }
    ASSERT_TRUE(cluster.ready()) << cluster.log();
    fingerprints.push_back(cluster.client().Model().numerics_fingerprint());
  }
  EXPECT_NE(fingerprints[0], fingerprints[1]);
}

TEST(DeterminismTest, QuantizedActivationsHaveAFingerprintOfTheirOwn) {
  std::vector<std::string> fingerprints;
  for (const char* activations : {"bf16", "fp8"}) {
    Cluster cluster({.flags = {std::string("--activations=") + activations}});
    ASSERT_TRUE(cluster.ready()) << cluster.log();
    fingerprints.push_back(cluster.client().Model().numerics_fingerprint());
  }
  EXPECT_NE(fingerprints[0], fingerprints[1]);
}

TEST(DeterminismTest, KvFormatsReportDifferentFingerprints) {
  std::vector<std::string> fingerprints;
  for (const char* kv : {"bf16", "fp8"}) {
    Cluster cluster({.flags = {std::string("--kv=") + kv}});
    ASSERT_TRUE(cluster.ready()) << cluster.log();
    fingerprints.push_back(cluster.client().Model().numerics_fingerprint());
  }
  EXPECT_NE(fingerprints[0], fingerprints[1]);
}

TEST(DeterminismTest, FourRanksOfQuantizedActivationsGiveTheBitsOfOne) {
  ExpectSameBits({.tp = 4, .flags = {"--max-step-tokens=50"}}, {"--activations=fp8"});
}

TEST(DeterminismTest, AnFp8CacheGivesTheSameBitsAloneTogetherAndOnTwoRanks) {
  Cluster alone({.flags = {"--kv=fp8", "--no-prefix-cache"}});
  ASSERT_TRUE(alone.ready()) << alone.log();
  const std::vector<std::string> expected = Alone(alone.client());
  Cluster two_ranks({.tp = 2, .flags = {"--kv=fp8", "--kv-tokens=1024"}});
  ASSERT_TRUE(two_ranks.ready()) << two_ranks.log();
  EXPECT_EQ(expected, Together(two_ranks.client()));
}

TEST(DeterminismTest, TensorParallelDegreesReportTheSameFingerprint) {
  std::vector<std::string> fingerprints;
  for (const int tp : {1, 2}) {
    Cluster cluster({.tp = tp});
    ASSERT_TRUE(cluster.ready()) << cluster.log();
    fingerprints.push_back(cluster.client().Model().numerics_fingerprint());
  }
  EXPECT_EQ(fingerprints[0], fingerprints[1]);
}

}  // namespace
}  // namespace marcoro
