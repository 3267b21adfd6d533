#include "deploy/cli/bench_report.h"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace marcoro {
namespace {

using Json = nlohmann::ordered_json;

double PerSecond(double count, const LoadResult& result) {
  return result.seconds > 0 ? count / result.seconds : 0;
}

double Mean(uint64_t sum, uint64_t count) {
  return count > 0 ? static_cast<double>(sum) / static_cast<double>(count) : 0;
}

std::string LatencyRow(const char* name, const Samples& samples) {
  const Summary s = samples.Summarize();
  constexpr double kMs = 1e3;
  return absl::StrFormat("%-12s %10.2f %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, s.mean * kMs,
                         s.p50 * kMs, s.p90 * kMs, s.p95 * kMs, s.p99 * kMs, s.maximum * kMs);
}

std::string Headline(const BenchReport& report) {
  const LoadOptions& options = report.options;
  const LoadResult& result = report.result;
  const std::string loop =
      options.rate > 0 ? absl::StrFormat("open loop, %g requests/s (Poisson), at most %d in flight",
                                         options.rate, options.max_in_flight)
                       : absl::StrFormat("closed loop, concurrency %d", options.concurrency);
  return absl::StrFormat("%s: %s, tp %u, %u replica(s) ready\n%s, %d channel(s): %.2f s\n\n",
                         report.model.name(), report.model.quantization(),
                         report.model.tensor_parallel(), report.model.replicas_ready(), loop,
                         options.channels, result.seconds);
}

std::string Errors(const LoadResult& result) {
  std::string text;
  for (const auto& [code, count] : result.errors) {
    absl::StrAppendFormat(&text, "  %u × %s\n", count, result.first_error.at(code));
  }
  if (result.gave_up) {
    absl::StrAppend(&text, "  stopped after ", kMostFailures, " failures in a row\n");
  }
  return text;
}

// "0.913 (0.887 … 0.925 over 8 rounds)"
std::string Spread(const std::vector<double>& ascending, int decimals, double unit = 1) {
  return absl::StrFormat("%.*f (%.*f … %.*f over %d rounds)", decimals, Median(ascending) / unit,
                         decimals, ascending.front() / unit, decimals, ascending.back() / unit,
                         ascending.size());
}

std::vector<double> Ascending(const RooflineReport& roofline,
                              const std::function<double(const RooflineRound&)>& value) {
  std::vector<double> values;
  for (const RooflineRound& round : roofline.rounds) {
    if (const double one = value(round); one > 0) values.push_back(one);
  }
  std::sort(values.begin(), values.end());
  return values;
}

std::vector<double> ReadRates(const RooflineReport& roofline) {
  return Ascending(roofline,
                   [](const RooflineRound& round) { return round.limits.read_bytes_per_second; });
}

std::vector<double> Peaks(const RooflineReport& roofline) {
  return Ascending(roofline, [](const RooflineRound& round) { return round.limits.bf16_flops; });
}

std::vector<double> StepSeconds(const RooflineReport& roofline) {
  return Ascending(roofline, [](const RooflineRound& round) { return round.step_seconds; });
}

std::string RooflineTable(const RooflineReport& roofline) {
  std::string text =
      absl::StrCat("\nread bandwidth   ", Spread(ReadRates(roofline), 1, 1e9),
                   " GB/s\nBF16 peak        ", Spread(Peaks(roofline), 0, 1e9), " GFLOP/s\n");
  absl::StrAppendFormat(&text, "weights          %.4g GB read per decode step\n",
                        roofline.cost.weight_bytes / 1e9);
  if (const auto ratios = roofline.decode_ratios(); !ratios.empty()) {
    absl::StrAppendFormat(&text, "decode step      %s ms at batch %g\n",
                          Spread(StepSeconds(roofline), 2, 1e-3), roofline.batch);
    absl::StrAppend(&text, "decode ratio     ", Spread(ratios, 3), "\n");
  }
  if (const auto ratios = roofline.prefill_ratios(); !ratios.empty()) {
    absl::StrAppend(&text, "prefill ratio    ", Spread(ratios, 3), "\n");
  }
  return text;
}

Json SummaryJson(const Samples& samples) {
  const Summary s = samples.Summarize();
  return {{"count", s.count}, {"mean", s.mean}, {"p50", s.p50},    {"p90", s.p90},
          {"p95", s.p95},     {"p99", s.p99},   {"max", s.maximum}};
}

Json OptionsJson(const LoadOptions& options) {
  Json json = {{"channels", options.channels}, {"seed", options.seed}};
  if (options.rate > 0) {
    json["loop"] = "open";
    json["rate"] = options.rate;
    json["max_in_flight"] = options.max_in_flight;
  } else {
    json["loop"] = "closed";
    json["concurrency"] = options.concurrency;
  }
  return json;
}

Json LimitsJson(const MachineLimits& limits) {
  return {{"read_bytes_per_second", limits.read_bytes_per_second},
          {"bf16_flops", limits.bf16_flops}};
}

Json RooflineJson(const RooflineReport& roofline) {
  Json json = {{"weight_bytes", roofline.cost.weight_bytes},
               {"batch", roofline.batch},
               {"rounds", Json::array()}};
  for (const RooflineRound& round : roofline.rounds) {
    Json one = {{"limits", LimitsJson(round.limits)}};
    if (round.step_seconds > 0) {
      one["decode_step_seconds"] = round.step_seconds;
      one["shortest_decode_step_seconds"] = round.shortest_step_seconds;
      one["decode_ratio"] = round.decode_ratio();
    }
    if (round.prefill_flops > 0) {
      one["prefill_flops"] = round.prefill_flops;
      one["prefill_ratio"] = round.prefill_ratio();
    }
    json["rounds"].push_back(std::move(one));
  }
  if (const auto ratios = roofline.decode_ratios(); !ratios.empty())
    json["decode_ratio"] = Median(ratios);
  if (const auto ratios = roofline.prefill_ratios(); !ratios.empty())
    json["prefill_ratio"] = Median(ratios);
  return json;
}

}  // namespace

double Median(const std::vector<double>& ascending) {
  return ascending.empty() ? 0 : ascending[(ascending.size() - 1) / 2];
}

std::vector<double> RooflineReport::decode_ratios() const {
  return Ascending(*this, [](const RooflineRound& round) { return round.decode_ratio(); });
}

std::vector<double> RooflineReport::prefill_ratios() const {
  return Ascending(*this, [](const RooflineRound& round) { return round.prefill_ratio(); });
}

RooflineRound CompareWithLimits(const MachineLimits& before, const MachineLimits& after,
                                const ModelCost& cost, double batch, const LoadResult& result) {
  RooflineRound round;
  round.limits = {(before.read_bytes_per_second + after.read_bytes_per_second) / 2,
                  (before.bf16_flops + after.bf16_flops) / 2};
  const Summary gaps = result.inter_token.Summarize();
  if (gaps.count > 0) {
    round.step_seconds = gaps.p50;
    round.shortest_step_seconds = DecodeSeconds(cost, round.limits, batch);
  }
  if (result.succeeded > 0 && result.output_tokens == result.succeeded && result.seconds > 0) {
    const double prompt = Mean(result.prompt_tokens, result.succeeded);
    round.prefill_flops =
        cost.PrefillFlops(prompt) * static_cast<double>(result.succeeded) / result.seconds;
  }
  return round;
}

std::string ReportTable(const BenchReport& report) {
  const LoadResult& result = report.result;
  std::string text = Headline(report);
  absl::StrAppendFormat(&text, "%-12s %10s %10s %10s %10s %10s %10s\n", "milliseconds", "mean",
                        "p50", "p90", "p95", "p99", "max");
  text += LatencyRow("TTFT", result.first_token);
  text += LatencyRow("ITL", result.inter_token);
  text += LatencyRow("end to end", result.end_to_end);
  text += LatencyRow("queue", result.queue);
  absl::StrAppendFormat(
      &text,
      "\nrequests         %u succeeded (%.2f/s), %u failed, %u not sent\n"
      "output tokens    %.1f/s, mean %.1f a request\n"
      "all tokens       %.1f/s, mean prompt %.1f\n",
      result.succeeded, PerSecond(static_cast<double>(result.succeeded), result), result.failed,
      result.not_sent, PerSecond(static_cast<double>(result.output_tokens), result),
      Mean(result.output_tokens, result.succeeded),
      PerSecond(static_cast<double>(result.output_tokens + result.prompt_tokens), result),
      Mean(result.prompt_tokens, result.succeeded));
  text += Errors(result);
  if (report.roofline) text += RooflineTable(*report.roofline);
  return text;
}

std::string ReportJson(const BenchReport& report) {
  const LoadResult& result = report.result;
  Json json = {
      {"model", report.model.name()},
      {"quantization", report.model.quantization()},
      {"tensor_parallel", report.model.tensor_parallel()},
      {"replicas_ready", report.model.replicas_ready()},
      {"load", OptionsJson(report.options)},
      {"seconds", result.seconds},
      {"succeeded", result.succeeded},
      {"failed", result.failed},
      {"not_sent", result.not_sent},
      {"gave_up", result.gave_up},
      {"errors", result.errors},
      {"prompt_tokens", result.prompt_tokens},
      {"output_tokens", result.output_tokens},
      {"requests_per_second", PerSecond(static_cast<double>(result.succeeded), result)},
      {"output_tokens_per_second", PerSecond(static_cast<double>(result.output_tokens), result)},
      {"total_tokens_per_second",
       PerSecond(static_cast<double>(result.output_tokens + result.prompt_tokens), result)},
      {"first_token_seconds", SummaryJson(result.first_token)},
      {"inter_token_seconds", SummaryJson(result.inter_token)},
      {"end_to_end_seconds", SummaryJson(result.end_to_end)},
      {"queue_seconds", SummaryJson(result.queue)}};
  if (report.roofline) json["roofline"] = RooflineJson(*report.roofline);
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace marcoro
