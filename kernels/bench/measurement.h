// Timing of cases and the roofline table.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/bench/limits.h"
#include "kernels/bench/workbench.h"

namespace marcoro {

struct Measurement {
  std::string op;
  std::string shape;
  double bytes = 0;
  double flops = 0;
  double best_seconds = 0;  // of one run; the machine's limits are the best of several runs too
  double median_seconds = 0;
  MachineLimits limits;  // measured between the runs

  double BytesPerSecond() const { return bytes / best_seconds; }
  double FlopsPerSecond() const { return flops / best_seconds; }
  // What the machine needs at least, over what the op took: 1 is perfect. Above 1 for data that was
  // in a cache.
  double Ratio() const { return limits.Seconds(bytes, flops) / best_seconds; }
};

struct MeasurementOptions {
  // A case is run in slices with a measurement of the limits before each, so that both see the same
  // machine when its clock or its neighbours change.
  int slices = 8;
  double seconds_per_slice = 0.04;
  int min_repetitions_per_slice = 1;
};

// How a machine is measured: its limits now, and the seconds of a run of a case.
struct Stopwatch {
  std::function<MachineLimits()> limits;
  std::function<double(const OpCase& op_case, int64_t repetition)> seconds;
};

// Runs the case several times, in turns with the limits; by the processor's clock with a meter.
Measurement Measure(const OpCase& op_case, const Stopwatch& stopwatch,
                    const MeasurementOptions& options);
Measurement Measure(const OpCase& op_case, LimitMeter& meter, const MeasurementOptions& options);

struct BenchInfo {
  std::string backend;
  int threads = 0;
  MachineLimits limits;  // best of the whole run
};

struct BenchReport {
  BenchInfo info;
  std::vector<Measurement> measurements;
};

// One line for each op: op, shape, µs, GB/s, TFLOP/s, ratio to the roofline.
void PrintTable(const BenchInfo& info, const std::vector<Measurement>& measurements,
                std::ostream& out);
// The same as one JSON object.
void PrintJson(const BenchInfo& info, const std::vector<Measurement>& measurements,
               std::ostream& out);

}  // namespace marcoro
