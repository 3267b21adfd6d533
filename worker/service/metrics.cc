#include "worker/service/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <exception>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace marcoro {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily Gauge(std::string name, std::string help, double value) {
  MetricFamily family{std::move(name), std::move(help), MetricType::Gauge, {}};
  family.metric.emplace_back();
  family.metric.back().gauge.value = value;
  return family;
}

MetricFamily Counter(std::string name, std::string help, double value) {
  MetricFamily family{std::move(name), std::move(help), MetricType::Counter, {}};
  family.metric.emplace_back();
  family.metric.back().counter.value = value;
  return family;
}

MetricFamily FinishedCounter(const EngineSnapshot& now) {
  MetricFamily family{"marcoro_worker_sequences_finished_total",
                      "Sequences that ended, by how they ended.",
                      MetricType::Counter,
                      {}};
  const std::pair<const char*, uint64_t> counts[] = {{"stop", now.finished_stop},
                                                     {"length", now.finished_length},
                                                     {"cancelled", now.finished_cancelled},
                                                     {"error", now.finished_error}};
  for (const auto& [reason, count] : counts) {
    family.metric.emplace_back();
    family.metric.back().label = {{"reason", reason}};
    family.metric.back().counter.value = static_cast<double>(count);
  }
  return family;
}

std::vector<MetricFamily> FamiliesOf(const EngineSnapshot& now) {
  const SchedulerCounters& scheduler = now.scheduler;
  const double usage =
      scheduler.kv_blocks_total == 0
          ? 0
          : static_cast<double>(scheduler.kv_blocks_used) / scheduler.kv_blocks_total;
  return {
      Gauge("marcoro_worker_sequences_running", "Sequences in the running batch.",
            scheduler.running),
      Gauge("marcoro_worker_sequences_waiting", "Sequences that wait for the batch.",
            scheduler.waiting),
      Gauge("marcoro_kv_cache_usage_ratio", "Share of KV blocks that running sequences hold.",
            usage),
      Gauge("marcoro_kv_cache_blocks", "KV blocks of 16 tokens.", scheduler.kv_blocks_total),
      Gauge("marcoro_worker_draining", "1 while new sequences are refused because of a drain.",
            now.draining ? 1 : 0),
      Counter("marcoro_worker_steps_total", "Engine steps.", static_cast<double>(now.steps)),
      Counter("marcoro_worker_prompt_tokens_total",
              "Prompt tokens computed, repetition after preemption included.",
              static_cast<double>(now.prompt_tokens)),
      Counter("marcoro_worker_generation_tokens_total", "Tokens sampled.",
              static_cast<double>(now.generated_tokens)),
      Counter("marcoro_num_preemptions_total",
              "Sequences that gave their KV blocks back to others.",
              static_cast<double>(scheduler.preemptions)),
      Counter("marcoro_prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
              static_cast<double>(scheduler.prefix_query_tokens)),
      Counter("marcoro_prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
              static_cast<double>(scheduler.prefix_hit_tokens)),
      FinishedCounter(now),
  };
}

}  // namespace

class WorkerMetrics::SnapshotCollectable final : public prometheus::Collectable {
 public:
  std::vector<MetricFamily> Collect() const override {
    // Under the lock, so that nobody reads from an engine once Set has taken it away.
    absl::MutexLock lock(&mutex_);
    return FamiliesOf(source_ ? source_() : EngineSnapshot());
  }

  void Set(std::function<EngineSnapshot()> source) {
    absl::MutexLock lock(&mutex_);
    source_ = std::move(source);
  }

 private:
  mutable absl::Mutex mutex_;
  std::function<EngineSnapshot()> source_ ABSL_GUARDED_BY(mutex_);
};

WorkerMetrics::WorkerMetrics(const WorkerInfo& info)
    : registry_(std::make_shared<prometheus::Registry>()),
      snapshot_(std::make_shared<SnapshotCollectable>()) {
  step_seconds_ = &prometheus::BuildHistogram()
                       .Name("marcoro_worker_step_seconds")
                       .Help("Duration of an engine step.")
                       .Register(*registry_)
                       .Add({}, prometheus::Histogram::BucketBoundaries{
                                    .001, .002, .005, .01, .02, .04, .06, .08, .1, .15, .25, .5,
                                    .75, 1, 2.5, 5, 10, 20});
  step_sequences_ =
      &prometheus::BuildHistogram()
           .Name("marcoro_worker_step_sequences")
           .Help("Sequences in an engine step.")
           .Register(*registry_)
           .Add({}, prometheus::Histogram::BucketBoundaries{1, 2, 4, 8, 16, 32, 64, 128, 256});
  prometheus::BuildGauge()
      .Name("marcoro_worker_info")
      .Help("What this worker serves; always 1.")
      .Register(*registry_)
      .Add({{"model", info.model},
            {"numerics_fingerprint", info.numerics_fingerprint},
            {"backend", info.backend},
            {"quantization", info.quantization},
            {"tensor_parallel", absl::StrCat(info.tensor_parallel)}})
      .Set(1);
}

WorkerMetrics::~WorkerMetrics() = default;

void WorkerMetrics::SetSnapshotSource(std::function<EngineSnapshot()> source) {
  snapshot_->Set(std::move(source));
}

void WorkerMetrics::ObserveStep(const StepRecord& record) {
  step_seconds_->Observe(absl::ToDoubleSeconds(record.duration));
  step_sequences_->Observe(record.sequences);
}

std::string WorkerMetrics::Scrape() const {
  std::vector<MetricFamily> families = registry_->Collect();
  for (MetricFamily& family : snapshot_->Collect()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

absl::StatusOr<std::unique_ptr<WorkerMetrics::Server>> WorkerMetrics::Server::Start(
    const std::string& address, const WorkerMetrics& metrics) {
  try {  // civetweb reports a port in use by an exception
    auto exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/2);
    exposer->RegisterCollectable(metrics.registry_);
    exposer->RegisterCollectable(metrics.snapshot_);
    return std::unique_ptr<Server>(new Server(std::move(exposer)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address, ": ", error.what()));
  }
}

WorkerMetrics::Server::Server(std::unique_ptr<prometheus::Exposer> exposer)
    : exposer_(std::move(exposer)) {}
WorkerMetrics::Server::~Server() = default;

}  // namespace marcoro
