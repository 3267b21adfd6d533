// What the router costs per token: 256 sequences over one stream from a fake worker that sends one
// message with 256 tokens per step, as fast as it can. Everything in one process:
// `cpu_us_per_token` counts the fake worker and gRPC on both sides too.
#include <benchmark/benchmark.h>

#include <ctime>
#include <memory>
#include <utility>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "spdlog/spdlog.h"
#include "tests/coordinator/routing/router_test_support.h"

namespace marcoro {
namespace {

constexpr int kSequences = 256;
constexpr uint32_t kTokens = 2000;

class CountingSink final : public SequenceSink {
 public:
  explicit CountingSink(absl::BlockingCounter& done) : done_(done) {}
  void OnUpdate(worker::v1::SequenceUpdate update) override { tokens_ += update.token_ids_size(); }
  void OnDone(absl::Status status) override {
    if (!status.ok() || tokens_ != kTokens) std::abort();
    done_.DecrementCount();
  }

 private:
  absl::BlockingCounter& done_;
  uint32_t tokens_ = 0;
};

double ProcessCpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void BM_TokensThroughTheRouter(benchmark::State& state) {
  spdlog::set_level(spdlog::level::off);
  FakeWorker worker({.status_interval = absl::Seconds(1)});
  const auto router = MakeRouter(OptionsFor({&worker}));
  if (!WaitReady(*router, 1)) state.SkipWithError("the worker does not become ready");
  double cpu = 0;
  for (auto _ : state) {
    absl::BlockingCounter done(kSequences);
    std::vector<std::unique_ptr<RoutedSequence>> sequences;
    const double begin = ProcessCpuSeconds();
    for (uint64_t i = 0; i < kSequences; ++i) {
      sequences.push_back(
          router->Start(MakeSubmit(i, kTokens), 0, std::make_shared<CountingSink>(done)));
    }
    done.Wait();
    cpu += ProcessCpuSeconds() - begin;
  }
  const double tokens = static_cast<double>(state.iterations()) * kSequences * kTokens;
  state.counters["tokens_per_s"] = benchmark::Counter(tokens, benchmark::Counter::kIsRate);
  state.counters["cpu_us_per_token"] = cpu / tokens * 1e6;
}
BENCHMARK(BM_TokensThroughTheRouter)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace marcoro

BENCHMARK_MAIN();
