#include "kernels/bench/cuda_bench.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/bench/cuda_limits.h"
#include "kernels/bench/cuda_workbench.h"
#include "kernels/cuda/matmul_codes_probe.h"
#include "kernels/cuda/matmul_probe.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"

namespace marcoro {
namespace {

using cuda::Stream;

// A run of one op is shorter than what events can tell apart: so many are timed together.
constexpr double kTimedSeconds = 300e-6;
constexpr int kMostTimedRuns = 64;
// The device waits while the host queues what is timed: launches of a few microseconds each.
constexpr uint64_t kPauseNanoseconds = 50'000;
constexpr uint64_t kPauseNanosecondsPerRun = 40'000;
constexpr int kLimitRounds = 3;
constexpr int kMultiplyIterations = 4096;

class Event {
 public:
  Event() { cudaEventCreate(&event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }

  void Record(Stream stream) { cudaEventRecord(event_, stream); }
  // Both have happened.
  double SecondsSince(const Event& begin) const {
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin.event_, event_);
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// The GPU, its stream, and what it can do.
class Device {
 public:
  static absl::StatusOr<std::unique_ptr<Device>> Create();
  ~Device() { cuda::DestroyStream(stream_); }

  Stream stream() const { return stream_; }
  const std::string& family() const { return family_; }

  // Seconds of what `queue` queues, by the device's clock.
  double SecondsOf(uint64_t pause, const std::function<void()>& queue);
  MachineLimits Limits(const Buffer& cold);
  // The average of some runs, beginning with this repetition.
  double SecondsOf(const OpCase& op_case, int64_t repetition, double guess);
  // What failed, if anything did.
  absl::Status Check() const { return cuda::Synchronize(stream_); }

 private:
  explicit Device(Stream stream) : stream_(stream) {}

  const Stream stream_;
  int multiprocessors_ = 0;
  bool warpgroups_ = false;
  std::string family_;
  Buffer sink_;
  Event begin_;
  Event end_;
};

absl::StatusOr<std::unique_ptr<Device>> Device::Create() {
  if (absl::Status status = cuda::UseDevice(0); !status.ok()) return status;
  auto stream = cuda::CreateStream();
  if (!stream.ok()) return stream.status();
  std::unique_ptr<Device> device(new Device(*stream));
  auto properties = cuda::Properties();
  if (!properties.ok()) return properties.status();
  device->multiprocessors_ = properties->multiprocessors;
  auto memory = cuda::AllocateDevice(sizeof(int));
  if (!memory.ok()) return memory.status();
  device->sink_ = Buffer(*memory, sizeof(int), [](void* data, size_t) { cuda::FreeDevice(data); });
  int architecture = 0;
  cuda::Architecture(*stream, static_cast<int*>(*memory));
  cuda::CopyToHost(*stream, &architecture, *memory, sizeof(int));
  if (absl::Status status = cuda::Synchronize(*stream); !status.ok()) return status;
  device->warpgroups_ = architecture == 900;
  const auto matmul = cuda::ProbeMatmul(*stream);
  if (!matmul.ok()) return matmul.status();
  const auto codes = cuda::ProbeCodes(*stream);
  if (!codes.ok()) return codes.status();
  device->family_ = absl::StrCat("cuda-sm_", architecture / 10, architecture >= 900 ? "a" : "",
                                 " on ", properties->name, " (", *matmul, "; ", *codes, ")");
  return device;
}

double Device::SecondsOf(uint64_t pause, const std::function<void()>& queue) {
  cuda::Pause(stream_, pause);
  begin_.Record(stream_);
  queue();
  end_.Record(stream_);
  // What fails here fails in Check, too.
  cuda::Synchronize(stream_).IgnoreError();
  return end_.SecondsSince(begin_);
}

MachineLimits Device::Limits(const Buffer& cold) {
  MachineLimits limits;
  const auto bytes = static_cast<double>(cold.bytes());
  for (int round = 0; round < kLimitRounds; ++round) {
    const double reading = SecondsOf(kPauseNanoseconds, [&] {
      cuda::ReadOnce(stream_, multiprocessors_, cold.data(), cold.bytes(),
                     static_cast<uint32_t*>(sink_.data()));
    });
    limits = Best(limits, {bytes / reading, 0});
    for (const bool warpgroups : {false, true}) {
      if (warpgroups && !warpgroups_) continue;
      double flops = 0;
      const double multiplying = SecondsOf(kPauseNanoseconds, [&] {
        flops = cuda::MultiplyLoop(stream_, multiprocessors_, warpgroups, kMultiplyIterations,
                                   static_cast<float*>(sink_.data()));
      });
      limits = Best(limits, {0, flops / multiplying});
    }
  }
  return limits;
}

double Device::SecondsOf(const OpCase& op_case, int64_t repetition, double guess) {
  const int runs = static_cast<int>(std::clamp(kTimedSeconds / guess, 1.0, double{kMostTimedRuns}));
  const uint64_t pause = kPauseNanoseconds + kPauseNanosecondsPerRun * static_cast<uint64_t>(runs);
  const double seconds = SecondsOf(pause, [&] {
    for (int run = 0; run < runs; ++run) op_case.run(repetition + run);
  });
  return seconds / runs;
}

}  // namespace

absl::StatusOr<std::string> DescribeGpu() {
  if (absl::Status status = cuda::UseDevice(0); !status.ok()) return status;
  const auto found = cuda::Properties();
  if (!found.ok()) return found.status();
  return nlohmann::json{{"name", found->name},
                        {"capability", absl::StrCat(found->major, ".", found->minor)},
                        {"multiprocessors", found->multiprocessors},
                        {"memory", found->total_memory},
                        {"driver", found->driver},
                        {"runtime", found->runtime}}
      .dump();
}

absl::StatusOr<BenchReport> RunGpuBench(const std::string& filter, bool quick) {
  auto device = Device::Create();
  if (!device.ok()) return device.status();
  cuda::CudaWorkbenchOptions options;
  if (quick) options.tokens = {1, 8};
  auto bench = cuda::CudaWorkbench::Create((*device)->stream(), options);
  if (!bench.ok()) return bench.status();
  auto cases = (*bench)->Cases();
  if (!cases.ok()) return cases.status();

  MeasurementOptions measurement_options;
  if (quick) measurement_options = {.slices = 1, .seconds_per_slice = 0};
  BenchReport report;
  report.info = {.backend = (*device)->family(), .threads = 1, .limits = {}};
  for (const OpCase& op_case : *cases) {
    if (!absl::StrContains(absl::StrCat(op_case.op, " ", op_case.shape), filter)) continue;
    double guess = kTimedSeconds;
    const Stopwatch stopwatch = {.limits = [&] { return (*device)->Limits((*bench)->cold()); },
                                 .seconds =
                                     [&](const OpCase& timed, int64_t repetition) {
                                       guess = (*device)->SecondsOf(
                                           timed, repetition * kMostTimedRuns, guess);
                                       return guess;
                                     }};
    report.measurements.push_back(Measure(op_case, stopwatch, measurement_options));
    if (absl::Status status = (*device)->Check(); !status.ok()) return status;
    report.info.limits = Best(report.info.limits, report.measurements.back().limits);
  }
  return report;
}

}  // namespace marcoro
