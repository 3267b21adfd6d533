// What a load test found, as a table and as JSON.
#pragma once

#include <optional>
#include <string>

#include "deploy/cli/load_generator.h"
#include "deploy/cli/roofline.h"
#include "marcoro/v1/model.pb.h"

namespace marcoro {

// The server's speed beside the machine's.
struct RooflineReport {
  MachineLimits before, after;  // of the machine, idle
  ModelCost cost;
  double batch = 0;  // sequences that decode together
  // The median inter-token time beside the shortest possible decode step; 0 without one.
  double step_seconds = 0, shortest_step_seconds = 0;
  // Operations per second over the whole run, beside the peak; 0 unless outputs are of one token.
  double prefill_flops = 0, peak_flops = 0;

  double decode_ratio() const {
    return step_seconds > 0 ? shortest_step_seconds / step_seconds : 0;
  }
  double prefill_ratio() const { return peak_flops > 0 ? prefill_flops / peak_flops : 0; }
};

// From limits, cost and batch, and what was measured. Prompts count as if all had the mean length.
RooflineReport CompareWithLimits(const MachineLimits& before, const MachineLimits& after,
                                 const ModelCost& cost, double batch, const LoadResult& result);

struct BenchReport {
  v1::Model model;
  LoadOptions options;
  LoadResult result;
  std::optional<RooflineReport> roofline;
};

std::string ReportTable(const BenchReport& report);
std::string ReportJson(const BenchReport& report);

}  // namespace marcoro
