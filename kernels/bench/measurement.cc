#include "kernels/bench/measurement.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <ostream>

#include "absl/strings/str_format.h"

namespace marcoro {

Measurement Measure(const OpCase& op_case, const Stopwatch& stopwatch,
                    const MeasurementOptions& options) {
  op_case.run(0);  // first touch of outputs and scratch memory
  MachineLimits limits;
  std::vector<double> seconds;
  for (int slice = 0; slice < options.slices; ++slice) {
    limits = Best(limits, stopwatch.limits());
    double slice_seconds = 0;
    for (int repetition = 0; repetition < options.min_repetitions_per_slice ||
                             slice_seconds < options.seconds_per_slice;
         ++repetition) {
      seconds.push_back(stopwatch.seconds(op_case, static_cast<int64_t>(seconds.size()) + 1));
      slice_seconds += seconds.back();
    }
  }
  std::sort(seconds.begin(), seconds.end());
  return {.op = op_case.op,
          .shape = op_case.shape,
          .bytes = op_case.bytes,
          .flops = op_case.flops,
          .best_seconds = seconds.front(),
          .median_seconds = seconds[seconds.size() / 2],
          .limits = limits};
}

Measurement Measure(const OpCase& op_case, LimitMeter& meter, const MeasurementOptions& options) {
  using Clock = std::chrono::steady_clock;
  const Stopwatch stopwatch = {
      .limits = [&] { return meter.Measure(1); },
      .seconds =
          [](const OpCase& timed, int64_t repetition) {
            const auto start = Clock::now();
            timed.run(repetition);
            return std::chrono::duration<double>(Clock::now() - start).count();
          }};
  return Measure(op_case, stopwatch, options);
}

void PrintTable(const BenchInfo& info, const std::vector<Measurement>& measurements,
                std::ostream& out) {
  out << absl::StreamFormat("backend %s, %d threads, read %.1f GB/s, bf16 peak %.3f TFLOP/s\n",
                            info.backend, info.threads, info.limits.read_bytes_per_second * 1e-9,
                            info.limits.bf16_flops * 1e-12);
  out << absl::StreamFormat("%-18s %-31s %12s %12s %8s %8s %6s\n", "op", "shape", "us", "median us",
                            "GB/s", "TFLOP/s", "ratio");
  for (const Measurement& m : measurements) {
    out << absl::StreamFormat("%-18s %-31s %12.1f %12.1f %8.1f %8.3f %6.2f\n", m.op, m.shape,
                              m.best_seconds * 1e6, m.median_seconds * 1e6,
                              m.BytesPerSecond() * 1e-9, m.FlopsPerSecond() * 1e-12, m.Ratio());
  }
}

void PrintJson(const BenchInfo& info, const std::vector<Measurement>& measurements,
               std::ostream& out) {
  auto limits_json = [](const MachineLimits& limits) {
    return nlohmann::json{{"read_bytes_per_second", limits.read_bytes_per_second},
                          {"bf16_flops", limits.bf16_flops}};
  };
  nlohmann::json results = nlohmann::json::array();
  for (const Measurement& m : measurements) {
    results.push_back({{"op", m.op},
                       {"shape", m.shape},
                       {"bytes", m.bytes},
                       {"flops", m.flops},
                       {"best_seconds", m.best_seconds},
                       {"median_seconds", m.median_seconds},
                       {"bytes_per_second", m.BytesPerSecond()},
                       {"flops_per_second", m.FlopsPerSecond()},
                       {"limits", limits_json(m.limits)},
                       {"ratio", m.Ratio()}});
  }
  const nlohmann::json report = {{"backend", info.backend},
                                 {"threads", info.threads},
                                 {"limits", limits_json(info.limits)},
                                 {"results", results}};
  out << report.dump(2) << "\n";
}

}  // namespace marcoro
