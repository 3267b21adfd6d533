// What a load test found, as a table and as JSON.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "deploy/cli/load_generator.h"
#include "deploy/cli/roofline.h"
#include "marcoro/v1/model.pb.h"

namespace marcoro {

// A part of the run and the machine's limits just before and after it.
struct RooflineRound {
  MachineLimits limits;  // the mean of both, each the median of some measurements
  // The median inter-token time beside the shortest possible decode step; 0 without one.
  double step_seconds = 0, shortest_step_seconds = 0;
  // Operations per second beside the peak; 0 unless outputs are of one token.
  double prefill_flops = 0;

  double decode_ratio() const {
    return step_seconds > 0 ? shortest_step_seconds / step_seconds : 0;
  }
  double prefill_ratio() const {
    return limits.bf16_flops > 0 ? prefill_flops / limits.bf16_flops : 0;
  }
};

// The server's speed beside the machine's. Clocks and memory of shared machines change within
// seconds: each round is compared with its own limits, and the median round is what is told.
struct RooflineReport {
  ModelCost cost;
  double batch = 0;  // sequences that decode together
  std::vector<RooflineRound> rounds;

  // Of the rounds that measured it, in ascending order.
  std::vector<double> decode_ratios() const;
  std::vector<double> prefill_ratios() const;
};

// From limits, cost and batch, and what was measured. Prompts count as if all had the mean length.
RooflineRound CompareWithLimits(const MachineLimits& before, const MachineLimits& after,
                                const ModelCost& cost, double batch, const LoadResult& result);

// The middle one of ascending values, the lower of two; 0 without values.
double Median(const std::vector<double>& ascending);

struct BenchReport {
  v1::Model model;
  LoadOptions options;
  LoadResult result;
  std::optional<RooflineReport> roofline;
};

std::string ReportTable(const BenchReport& report);
std::string ReportJson(const BenchReport& report);

}  // namespace marcoro
