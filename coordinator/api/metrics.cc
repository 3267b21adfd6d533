#include "coordinator/api/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <exception>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/api/errors.h"

namespace marcoro {
namespace {

using prometheus::Counter;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;

constexpr std::array<const char*, kApiMethodCount> kMethodNames = {
    "Generate", "GenerateStream", "Score", "Tokenize", "Detokenize", "ListModels", "GetModel"};

// gRPC's status codes by number.
constexpr std::array<const char*, 17> kCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

constexpr absl::string_view kOtherReason = "OTHER";
constexpr std::array<absl::string_view, 8> kRejectionReasons = {
    reason::kTooManyRequests, reason::kQuotaExceeded, reason::kQueueFull,  reason::kNoReplica,
    reason::kDeadline,        reason::kDraining,      reason::kSlowReader, kOtherReason};

constexpr std::array<const char*, 4> kFinishReasons = {"stop", "stop_sequence", "length",
                                                       "cancelled"};

Buckets LatencyBuckets() {
  return {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,
          .75,  1,    2.5, 5,   7.5, 10,  20,  40, 80,  160};
}

Buckets InterTokenBuckets() {
  return {.001, .002, .005, .01, .02, .03, .04, .05, .075, .1, .15,
          .2,   .3,   .4,   .5,  .75, 1,   2.5, 5,   10,   20, 40};
}

Counter& AddCounter(prometheus::Registry& registry, const std::string& name,
                    const std::string& help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

Histogram& AddHistogram(prometheus::Registry& registry, const std::string& name,
                        const std::string& help, const Buckets& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, buckets);
}

}  // namespace

// Asks the source at each scrape, so that gauges of others need no updates.
class ApiMetrics::SnapshotCollectable : public prometheus::Collectable {
 public:
  void SetSource(std::function<MetricsSnapshot()> source) {
    absl::MutexLock lock(&mutex_);
    source_ = std::move(source);
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    MetricsSnapshot now;
    {
      absl::MutexLock lock(&mutex_);
      if (source_) now = source_();
    }
    const auto number = [](auto value) { return static_cast<double>(value); };
    return {
        Gauge("marcoro_num_requests_running", "Sequences that the replicas are generating.",
              number(now.sequences_running)),
        Gauge("marcoro_num_requests_waiting", "Sequences that wait in the replicas' queues.",
              number(now.sequences_waiting)),
        Gauge("marcoro_requests_in_flight", "Requests that the coordinator has admitted.",
              number(now.requests_in_flight)),
        Gauge("marcoro_replicas_configured", "Worker replicas that the coordinator knows.",
              now.replicas_configured),
        Gauge("marcoro_replicas_ready", "Worker replicas that take requests.", now.replicas_ready),
        Gauge("marcoro_draining", "1 while new requests are refused because of a drain.",
              now.draining ? 1 : 0),
        Total("marcoro_replayed_sequences_total",
              "Sequences that went on elsewhere after their replica was lost.",
              number(now.replayed_sequences)),
    };
  }

 private:
  static prometheus::MetricFamily Family(const char* name, const char* help,
                                         prometheus::MetricType type, double value) {
    prometheus::ClientMetric metric;
    if (type == prometheus::MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    return {name, help, type, {std::move(metric)}};
  }
  static prometheus::MetricFamily Gauge(const char* name, const char* help, double value) {
    return Family(name, help, prometheus::MetricType::Gauge, value);
  }
  static prometheus::MetricFamily Total(const char* name, const char* help, double value) {
    return Family(name, help, prometheus::MetricType::Counter, value);
  }

  mutable absl::Mutex mutex_;
  std::function<MetricsSnapshot()> source_ ABSL_GUARDED_BY(mutex_);
};

struct ApiMetrics::Families {
  std::array<std::array<Counter*, kCodeNames.size()>, kApiMethodCount> calls;
  std::map<absl::string_view, Counter*> rejections;
  std::array<Counter*, kFinishReasons.size()> finishes;
  Counter* prompt_tokens;
  Counter* cached_tokens;
  Counter* generation_tokens;
  Counter* slow_readers;
  Histogram* first_token;
  Histogram* inter_token;
  Histogram* total;
  Histogram* queue;
  Histogram* prefill;
  Histogram* decode;

  void AddLabelled(prometheus::Registry& registry);
  void AddCounters(prometheus::Registry& registry);
  void AddHistograms(prometheus::Registry& registry);
};

ApiMetrics::ApiMetrics(const ModelInfo& model)
    : registry_(std::make_shared<prometheus::Registry>()),
      snapshot_(std::make_shared<SnapshotCollectable>()),
      families_(std::make_unique<Families>()) {
  families_->AddLabelled(*registry_);
  families_->AddCounters(*registry_);
  families_->AddHistograms(*registry_);
  prometheus::BuildGauge()
      .Name("marcoro_model_info")
      .Help("Always 1; the labels say what is served.")
      .Register(*registry_)
      .Add(
          {{"model", model.name}, {"architecture", model.architecture}, {"version", model.version}})
      .Set(1);
}

void ApiMetrics::Families::AddLabelled(prometheus::Registry& registry) {
  auto& call_family = prometheus::BuildCounter()
                          .Name("marcoro_grpc_requests_total")
                          .Help("Finished calls of the public API by method and gRPC status code.")
                          .Register(registry);
  for (int method = 0; method < kApiMethodCount; ++method) {
    for (size_t code = 0; code < kCodeNames.size(); ++code) {
      calls[method][code] =
          &call_family.Add({{"method", kMethodNames[method]}, {"code", kCodeNames[code]}});
    }
  }
  auto& rejection_family = prometheus::BuildCounter()
                               .Name("marcoro_admission_rejections_total")
                               .Help("Requests refused for want of room, time or replicas.")
                               .Register(registry);
  for (absl::string_view name : kRejectionReasons) {
    rejections[name] = &rejection_family.Add({{"reason", absl::AsciiStrToLower(name)}});
  }
  auto& finish_family = prometheus::BuildCounter()
                            .Name("marcoro_request_success_total")
                            .Help("Finished choices by the reason of their end.")
                            .Register(registry);
  for (size_t i = 0; i < kFinishReasons.size(); ++i) {
    finishes[i] = &finish_family.Add({{"finished_reason", kFinishReasons[i]}});
  }
}

void ApiMetrics::Families::AddCounters(prometheus::Registry& registry) {
  prompt_tokens =
      &AddCounter(registry, "marcoro_prompt_tokens_total", "Prompt tokens of served requests.");
  cached_tokens = &AddCounter(registry, "marcoro_prompt_tokens_cached_total",
                              "Prompt tokens whose keys and values came from a prefix cache.");
  generation_tokens = &AddCounter(registry, "marcoro_generation_tokens_total", "Generated tokens.");
  slow_readers = &AddCounter(registry, "marcoro_slow_readers_total",
                             "Streams that were cancelled because their client did not read.");
}

void ApiMetrics::Families::AddHistograms(prometheus::Registry& registry) {
  first_token = &AddHistogram(registry, "marcoro_time_to_first_token_seconds",
                              "From a request's arrival to its first token.", LatencyBuckets());
  inter_token = &AddHistogram(registry, "marcoro_inter_token_latency_seconds",
                              "Between two tokens of a choice.", InterTokenBuckets());
  total = &AddHistogram(registry, "marcoro_e2e_request_latency_seconds",
                        "From a request's arrival to its end.", LatencyBuckets());
  queue = &AddHistogram(registry, "marcoro_request_queue_time_seconds",
                        "From a request's arrival to the start of its prefill.", LatencyBuckets());
  prefill =
      &AddHistogram(registry, "marcoro_request_prefill_time_seconds",
                    "From the start of a request's prefill to its first token.", LatencyBuckets());
  decode = &AddHistogram(registry, "marcoro_request_decode_time_seconds",
                         "From a request's first token to its last.", LatencyBuckets());
}

ApiMetrics::~ApiMetrics() = default;

void ApiMetrics::SetSnapshotSource(std::function<MetricsSnapshot()> source) {
  static_cast<SnapshotCollectable&>(*snapshot_).SetSource(std::move(source));
}

void ApiMetrics::CountCall(ApiMethod method, absl::StatusCode code) {
  size_t index = static_cast<size_t>(code);
  if (index >= kCodeNames.size()) index = static_cast<size_t>(absl::StatusCode::kUnknown);
  families_->calls[static_cast<size_t>(method)][index]->Increment();
}

void ApiMetrics::CountRejection(absl::string_view reason) {
  const auto found = families_->rejections.find(reason);
  (found != families_->rejections.end() ? found->second : families_->rejections[kOtherReason])
      ->Increment();
}

void ApiMetrics::CountFinish(v1::FinishReason reason) {
  if (reason == v1::FINISH_REASON_UNSPECIFIED) return;
  families_->finishes[static_cast<size_t>(reason) - 1]->Increment();
}

void ApiMetrics::CountPromptTokens(uint64_t prompt, uint64_t cached) {
  families_->prompt_tokens->Increment(static_cast<double>(prompt));
  families_->cached_tokens->Increment(static_cast<double>(cached));
}

void ApiMetrics::CountGeneratedTokens(uint64_t tokens) {
  families_->generation_tokens->Increment(static_cast<double>(tokens));
}

void ApiMetrics::CountSlowReader() { families_->slow_readers->Increment(); }

void ApiMetrics::ObserveFirstToken(absl::Duration since_arrival) {
  families_->first_token->Observe(absl::ToDoubleSeconds(since_arrival));
}

void ApiMetrics::ObserveInterToken(absl::Duration gap, uint64_t tokens) {
  const double seconds = absl::ToDoubleSeconds(gap) / static_cast<double>(tokens);
  for (uint64_t i = 0; i < tokens; ++i) families_->inter_token->Observe(seconds);
}

void ApiMetrics::ObserveRequest(absl::Duration queue, absl::Duration prefill, absl::Duration decode,
                                absl::Duration total) {
  families_->queue->Observe(absl::ToDoubleSeconds(queue));
  families_->prefill->Observe(absl::ToDoubleSeconds(prefill));
  families_->decode->Observe(absl::ToDoubleSeconds(decode));
  families_->total->Observe(absl::ToDoubleSeconds(total));
}

std::string ApiMetrics::Scrape() const {
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  for (prometheus::MetricFamily& family : snapshot_->Collect()) {
    families.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

MetricsServer::MetricsServer(std::unique_ptr<prometheus::Exposer> exposer)
    : exposer_(std::move(exposer)) {}

MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address,
                                                                    const ApiMetrics& metrics) {
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/2);
    exposer->RegisterCollectable(metrics.registry());
    exposer->RegisterCollectable(metrics.snapshot_collectable());
    return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(exposer)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address, " (",
                                               error.what(),
                                               "); is the port in use? choose another with "
                                               "--metrics"));
  }
}

int MetricsServer::port() const {
  const std::vector<int> ports = exposer_->GetListeningPorts();
  return ports.empty() ? 0 : ports.front();
}

}  // namespace marcoro
