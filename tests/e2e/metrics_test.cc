// Prometheus endpoints of both binaries, as a dashboard and a real parser see them.
#include <cstdio>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;

const char* const kCoordinatorFamilies[] = {
    "marcoro_num_requests_running",         "marcoro_num_requests_waiting",
    "marcoro_prompt_tokens_total",          "marcoro_generation_tokens_total",
    "marcoro_request_success_total",        "marcoro_admission_rejections_total",
    "marcoro_time_to_first_token_seconds",  "marcoro_inter_token_latency_seconds",
    "marcoro_e2e_request_latency_seconds",  "marcoro_request_queue_time_seconds",
    "marcoro_request_prefill_time_seconds", "marcoro_request_decode_time_seconds",
    "marcoro_replayed_sequences_total",     "marcoro_model_info"};
const char* const kWorkerFamilies[] = {"marcoro_worker_sequences_running",
                                       "marcoro_worker_sequences_waiting",
                                       "marcoro_kv_cache_usage_ratio",
                                       "marcoro_kv_cache_blocks",
                                       "marcoro_num_preemptions_total",
                                       "marcoro_prefix_cache_queries_total",
                                       "marcoro_prefix_cache_hits_total",
                                       "marcoro_worker_step_seconds",
                                       "marcoro_worker_info"};

template <size_t N>
void ExpectFamilies(const std::string& page, const char* const (&families)[N]) {
  for (const char* family : families) {
    EXPECT_THAT(page, HasSubstr(std::string("# HELP ") + family + " "));
    EXPECT_THAT(page, HasSubstr(std::string("# TYPE ") + family + " "));
    EXPECT_THAT(page, HasSubstr(std::string("\n") + family)) << "no series";
  }
}

// promtool reads the page as Prometheus would, and finds fault with names and help texts.
void ExpectPromtoolToAgree(const std::string& page) {
  const std::string path = ::testing::TempDir() + "/marcoro_metrics_" + std::to_string(getpid());
  std::ofstream(path) << page;
  const Finished check =
      RunToEnd({"/bin/sh", "-c", FindTool("promtool") + " check metrics <" + path});
  EXPECT_EQ(check.exit_code, std::optional<int>(0)) << check.out << check.err;
  std::remove(path.c_str());
}

TEST(MetricsTest, EveryFamilyIsThereBeforeTheFirstRequestAndPassesPromtool) {
  if (FindTool("promtool").empty())
    GTEST_SKIP() << "promtool is not installed (Debian package prometheus)";
  Cluster cluster;
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const std::string coordinator = Scrape(cluster.metrics_port());
  const std::string worker = Scrape(cluster.worker_metrics_port(0));
  ExpectFamilies(coordinator, kCoordinatorFamilies);
  ExpectFamilies(worker, kWorkerFamilies);
  ExpectPromtoolToAgree(coordinator);
  ExpectPromtoolToAgree(worker);
  ASSERT_TRUE(cluster.client().Generate(Greedy("Return", 8)).status.ok());
  ExpectPromtoolToAgree(Scrape(cluster.metrics_port()));
  ExpectPromtoolToAgree(Scrape(cluster.worker_metrics_port(0)));
}

TEST(MetricsTest, CountersCountWhatWasServedAndRefused) {
  Cluster cluster;
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  ASSERT_TRUE(cluster.client().Generate(Greedy("The default value is", 8)).status.ok());
  ASSERT_TRUE(cluster.client().GenerateStream(Greedy("The default value is", 3)).status.ok());
  v1::GenerateRequest bad = Greedy("x", 1);
  bad.set_n(99);
  ASSERT_FALSE(cluster.client().Generate(bad).status.ok());
  const auto coordinator = [&](const char* series) { return cluster.CoordinatorMetric(series); };
  EXPECT_EQ(coordinator("marcoro_prompt_tokens_total"), 10);
  EXPECT_EQ(coordinator("marcoro_generation_tokens_total"), 11);
  EXPECT_EQ(coordinator("marcoro_request_success_total{finished_reason=\"length\"}"), 2);
  EXPECT_EQ(coordinator("marcoro_time_to_first_token_seconds_count"), 2);
  EXPECT_EQ(coordinator("marcoro_e2e_request_latency_seconds_count"), 2);
  EXPECT_EQ(coordinator("marcoro_inter_token_latency_seconds_count"), 9);
  const auto calls = [&](const char* code, const char* method) {
    return coordinator(("marcoro_grpc_requests_total{code=\"" + std::string(code) + "\",method=\"" +
                        method + "\"}")
                           .c_str());
  };
  // Counted when a call is over on the server's side, a moment after its client has the answer.
  EXPECT_TRUE(Eventually([&] {
    return calls("OK", "Generate") == 1 && calls("OK", "GenerateStream") == 1 &&
           calls("INVALID_ARGUMENT", "Generate") == 1;
  }));
  EXPECT_EQ(cluster.WorkerMetric(0, "marcoro_worker_generation_tokens_total"), 11);
  EXPECT_EQ(cluster.WorkerMetric(0, "marcoro_worker_sequences_finished_total{reason=\"length\"}"),
            2);
}

TEST(MetricsTest, AWarmPrefixIsCountedAndReportedInUsage) {
  Cluster cluster;
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  std::string prompt;
  for (int i = 0; i < 20; ++i) prompt += "If the file does not exist, raise. ";
  const Reply cold = cluster.client().Generate(Greedy(prompt, 2));
  const Reply warm = cluster.client().Generate(Greedy(prompt, 2));
  EXPECT_EQ(cold.response.usage().cached_tokens(), 0u);
  EXPECT_GE(warm.response.usage().cached_tokens(), 16u);
  EXPECT_EQ(cluster.WorkerMetric(0, "marcoro_prefix_cache_hits_total"),
            warm.response.usage().cached_tokens());
  EXPECT_TRUE(Bits(cold.response) == Bits(warm.response));
}

}  // namespace
}  // namespace marcoro
