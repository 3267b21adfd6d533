// kernels_bench: every op of a backend against what the machine can do at best.
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/bench/measurement.h"
#include "kernels/bench/workbench.h"

ABSL_FLAG(std::string, backend, "auto", "auto, avx512, avx2 or reference");
ABSL_FLAG(int, threads, 1, "threads that compute");
ABSL_FLAG(std::string, filter, "", "run only ops whose \"op shape\" contains this text");
ABSL_FLAG(bool, quick, false, "few shapes, few repetitions: whether it works, not how fast");
ABSL_FLAG(bool, json, false, "print one JSON object instead of a table");

namespace marcoro {
namespace {

absl::Status Run() {
  const bool quick = absl::GetFlag(FLAGS_quick);
  BackendOptions options;
  options.name = absl::GetFlag(FLAGS_backend);
  options.threads = absl::GetFlag(FLAGS_threads);
  absl::StatusOr<std::unique_ptr<Backend>> backend = CreateBackend(options);
  if (!backend.ok()) return backend.status();
  absl::StatusOr<LimitMeter> meter = LimitMeter::Create(options.threads);
  if (!meter.ok()) return meter.status();
  absl::StatusOr<std::unique_ptr<Workbench>> bench = Workbench::Create(**backend, quick);
  if (!bench.ok()) return bench.status();

  MeasurementOptions measurement_options;
  if (quick) measurement_options = {.slices = 1, .seconds_per_slice = 0};
  BenchInfo info{.backend = std::string((*backend)->name()),
                 .threads = options.threads,
                 .limits = meter->Measure(quick ? 1 : 10)};
  std::vector<Measurement> measurements;
  for (const OpCase& op_case : (*bench)->Cases()) {
    if (!absl::StrContains(absl::StrCat(op_case.op, " ", op_case.shape),
                           absl::GetFlag(FLAGS_filter))) {
      continue;
    }
    measurements.push_back(Measure(op_case, *meter, measurement_options));
    info.limits = Best(info.limits, measurements.back().limits);
  }
  if (measurements.empty()) return absl::NotFoundError("no op matches --filter");
  if (absl::GetFlag(FLAGS_json)) {
    PrintJson(info, measurements, std::cout);
  } else {
    PrintTable(info, measurements, std::cout);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace marcoro

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("measures every op of a backend against the limits of the machine");
  absl::ParseCommandLine(argc, argv);
  if (const absl::Status status = marcoro::Run(); !status.ok()) {
    std::fprintf(stderr, "kernels_bench: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}
