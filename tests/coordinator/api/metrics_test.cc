// What Prometheus scrapes.
#include <map>
#include <sstream>

#include "tests/coordinator/api/api_fixture.h"

namespace marcoro {
namespace {

using testing::HasSubstr;
using worker::v1::SEQUENCE_END_LENGTH;

class MetricsTest : public ApiTest {
 protected:
  // The value of a series such as `name{label="x"}`; -1 if there is none.
  double Value(const std::string& series) {
    std::istringstream lines(metrics_->Scrape());
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind(series + " ", 0) == 0) return std::stod(line.substr(series.size()));
    }
    return -1;
  }
};

// Name and type of every family that dashboards, gateways and alerts rely on.
TEST_F(MetricsTest, EveryFamilyIsThereFromTheFirstScrape) {
  const std::map<std::string, std::string> expected = {
      {"marcoro_num_requests_running", "gauge"},
      {"marcoro_num_requests_waiting", "gauge"},
      {"marcoro_requests_in_flight", "gauge"},
      {"marcoro_replicas_configured", "gauge"},
      {"marcoro_replicas_ready", "gauge"},
      {"marcoro_draining", "gauge"},
      {"marcoro_model_info", "gauge"},
      {"marcoro_prompt_tokens_total", "counter"},
      {"marcoro_prompt_tokens_cached_total", "counter"},
      {"marcoro_generation_tokens_total", "counter"},
      {"marcoro_request_success_total", "counter"},
      {"marcoro_admission_rejections_total", "counter"},
      {"marcoro_grpc_requests_total", "counter"},
      {"marcoro_slow_readers_total", "counter"},
      {"marcoro_replayed_sequences_total", "counter"},
      {"marcoro_time_to_first_token_seconds", "histogram"},
      {"marcoro_inter_token_latency_seconds", "histogram"},
      {"marcoro_e2e_request_latency_seconds", "histogram"},
      {"marcoro_request_queue_time_seconds", "histogram"},
      {"marcoro_request_prefill_time_seconds", "histogram"},
      {"marcoro_request_decode_time_seconds", "histogram"},
  };
  std::map<std::string, std::string> found;
  std::istringstream lines(metrics_->Scrape());
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, kind, name, type;
    words >> hash >> kind >> name >> type;
    if (hash == "#" && kind == "TYPE") found[name] = type;
  }
  EXPECT_EQ(found, expected);
}

TEST_F(MetricsTest, EveryLabelValueIsThereFromTheFirstScrape) {
  for (const char* reason : {"stop", "stop_sequence", "length", "cancelled"}) {
    EXPECT_EQ(
        Value("marcoro_request_success_total{finished_reason=\"" + std::string(reason) + "\"}"), 0);
  }
  for (const char* reason : {"too_many_requests", "quota_exceeded", "queue_full", "no_replica",
                             "deadline", "draining", "slow_reader", "other"}) {
    EXPECT_EQ(Value("marcoro_admission_rejections_total{reason=\"" + std::string(reason) + "\"}"),
              0);
  }
  EXPECT_EQ(Value("marcoro_grpc_requests_total{code=\"UNAVAILABLE\",method=\"Score\"}"), 0);
  EXPECT_EQ(Value("marcoro_time_to_first_token_seconds_bucket{le=\"0.001\"}"), 0);
  EXPECT_EQ(Value("marcoro_time_to_first_token_seconds_bucket{le=\"160\"}"), 0);
  EXPECT_EQ(Value("marcoro_inter_token_latency_seconds_bucket{le=\"0.002\"}"), 0);
}

TEST_F(MetricsTest, RequestsAreCounted) {
  router_->SetScript([](const worker::v1::Submit&) {
    FakeRouter::Script script = OneByOne({20, 21, 22}, SEQUENCE_END_LENGTH);
    script[0].set_cached_tokens(1);
    return script;
  });
  v1::GenerateRequest request;
  for (int i = 0; i < 5; ++i) request.mutable_token_ids()->add_ids(9);
  request.set_n(2);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(Value("marcoro_prompt_tokens_total"), 5);
  EXPECT_EQ(Value("marcoro_prompt_tokens_cached_total"), 1);
  EXPECT_EQ(Value("marcoro_generation_tokens_total"), 6);
  EXPECT_EQ(Value("marcoro_request_success_total{finished_reason=\"length\"}"), 2);
  EXPECT_EQ(Value("marcoro_time_to_first_token_seconds_count"), 1);
  EXPECT_EQ(Value("marcoro_inter_token_latency_seconds_count"), 4);
  EXPECT_EQ(Value("marcoro_e2e_request_latency_seconds_count"), 1);
}

TEST_F(MetricsTest, RefusalsAreCountedByReason) {
  router_->SetFailure(absl::ResourceExhaustedError("full"));
  Refusal(Prompt("hi"));
  EXPECT_EQ(Value("marcoro_admission_rejections_total{reason=\"queue_full\"}"), 1);
  v1::GenerateRequest bad = Prompt("hi");
  bad.set_n(99);
  Refusal(bad);
  EXPECT_EQ(Value("marcoro_admission_rejections_total{reason=\"other\"}"), 0);
  // Counted when gRPC is done with the call, which is after the client has its answer.
  const absl::Time give_up = absl::Now() + absl::Seconds(30);
  const std::string series =
      "marcoro_grpc_requests_total{code=\"INVALID_ARGUMENT\",method=\"Generate\"}";
  while (Value(series) != 1 && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(Value(series), 1);
}

TEST_F(MetricsTest, GaugesAreReadAtEachScrape) {
  int ready = 3;
  metrics_->SetSnapshotSource([&ready] {
    MetricsSnapshot snapshot;
    snapshot.replicas_ready = ready;
    return snapshot;
  });
  EXPECT_EQ(Value("marcoro_replicas_ready"), 3);
  ready = 1;
  EXPECT_EQ(Value("marcoro_replicas_ready"), 1);
}

TEST_F(MetricsTest, AnAddressInUseIsRefusedWithAdvice) {
  const auto first = MetricsServer::Start("127.0.0.1:0", *metrics_);
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string address = "127.0.0.1:" + std::to_string((*first)->port());
  const auto second = MetricsServer::Start(address, *metrics_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()),
              testing::AllOf(HasSubstr(address), HasSubstr("--metrics")));
}

}  // namespace
}  // namespace marcoro
