// kernels_bench: every op of a backend against what the machine can do at best.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/bench/cuda_bench.h"
#include "kernels/bench/measurement.h"
#include "kernels/bench/workbench.h"

ABSL_FLAG(std::string, backend, "auto", "auto, avx512, avx2, reference or cuda");
ABSL_FLAG(int, threads, 1, "threads that compute");
ABSL_FLAG(std::string, filter, "", "run only ops whose \"op shape\" contains this text");
ABSL_FLAG(bool, quick, false, "few shapes, few repetitions: whether it works, not how fast");
ABSL_FLAG(bool, json, false, "print one JSON object instead of a table");
ABSL_FLAG(std::string, json_file, "", "write that object to this file, too");
ABSL_FLAG(bool, device, false, "print which GPU there is, as one JSON object, and measure nothing");

namespace marcoro {
namespace {

absl::StatusOr<BenchReport> RunProcessorBench(const std::string& filter, bool quick) {
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
  BenchReport report;
  report.info = {.backend = std::string((*backend)->name()),
                 .threads = options.threads,
                 .limits = meter->Measure(quick ? 1 : 10)};
  for (const OpCase& op_case : (*bench)->Cases()) {
    if (!absl::StrContains(absl::StrCat(op_case.op, " ", op_case.shape), filter)) continue;
    report.measurements.push_back(Measure(op_case, *meter, measurement_options));
    report.info.limits = Best(report.info.limits, report.measurements.back().limits);
  }
  return report;
}

absl::Status Run() {
  if (absl::GetFlag(FLAGS_device)) {
    const absl::StatusOr<std::string> gpu = DescribeGpu();
    if (!gpu.ok()) return gpu.status();
    std::cout << *gpu << "\n";
    return absl::OkStatus();
  }
  const std::string filter = absl::GetFlag(FLAGS_filter);
  const bool quick = absl::GetFlag(FLAGS_quick);
  const auto report = absl::GetFlag(FLAGS_backend) == "cuda" ? RunGpuBench(filter, quick)
                                                             : RunProcessorBench(filter, quick);
  if (!report.ok()) return report.status();
  if (report->measurements.empty()) return absl::NotFoundError("no op matches --filter");
  if (absl::GetFlag(FLAGS_json)) {
    PrintJson(report->info, report->measurements, std::cout);
  } else {
    PrintTable(report->info, report->measurements, std::cout);
  }
  const std::string path = absl::GetFlag(FLAGS_json_file);
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path);
  PrintJson(report->info, report->measurements, file);
  if (!file.flush()) return absl::UnknownError(absl::StrCat("cannot write ", path));
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
