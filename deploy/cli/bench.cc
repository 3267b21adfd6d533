// marcoro bench: load on a server, and how long its answers take.
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "deploy/cli/bench_report.h"
#include "deploy/cli/client.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/model_input.h"
#include "deploy/cli/text_input.h"
#include "deploy/cli/workload.h"
#include "worker/weights/hub_cache.h"
#include "worker/weights/merge/plan.h"

namespace marcoro {
namespace {

struct BenchFlags {
  ClientOptions client;
  int32_t channels = 4;
  int32_t concurrency = 8;
  double rate = 0;
  int32_t max_in_flight = 1024;
  uint64_t requests = 0;
  absl::Duration duration;
  uint64_t warmup = 0;
  uint64_t seed = 0;
  std::string prompt_tokens = "128";
  std::string output_tokens = "128";
  std::string prompts;
  std::optional<double> temperature;
  std::string json;
  bool roofline = false;
  double weight_bytes = 0;
  std::string checkpoint;
};

constexpr const char* kUsage =
    "usage: marcoro bench [flags]\n\n"
    "Sends GenerateStream requests and reports, in milliseconds: TTFT (first token), ITL (time "
    "between stream\nmessages divided by the tokens that came), end to end, and queue (as the "
    "server tells it).\nClosed loop: --concurrency requests are always in flight. Open loop "
    "(--rate): requests arrive as a Poisson process,\nand latencies count from when a request was "
    "due, so that a server that falls behind cannot hide it.\nLike the prompts, arrivals are a "
    "function of --seed. Exit code 1 if no request succeeded.\n\n"
    "--roofline, on the server's own machine while nothing else runs, measures the machine's "
    "limits between up to 16 rounds of\nthe load (of at least --concurrency requests each), "
    "compares each round with its own limits, and tells the median:\n"
    "  decode:  the shortest step, max(W / read bandwidth, 2 P b / BF16 peak), as a ratio to the "
    "median ITL. W: bytes of the\n"
    "           linear weights (1 a weight in FP8, 2 in BF16) and of lm_head (BF16), read once a "
    "step; P: their number;\n"
    "           b: --concurrency. Use outputs that are long beside the prompts.\n"
    "  prefill: with --output-tokens=1, FLOP/s of all prompts over the whole run, as a ratio to "
    "the BF16 peak. A prompt of n\n"
    "           tokens takes 2 n L + 4 layers heads head_dim n (n + 1) / 2 + 2 H (L: linear "
    "weights, H: those of lm_head).";

void AddLoadFlags(FlagTable* table, BenchFlags* flags) {
  table->Add("concurrency", &flags->concurrency,
             {.value = "N",
              .help = "Closed loop: requests in flight, always.",
              .minimum = 1,
              .maximum = 65536});
  table->Add("rate", &flags->rate,
             {.value = "X",
              .help = "Open loop: requests per second, on average; 0: closed loop.",
              .maximum = 1e6});
  table->Add("max-in-flight", &flags->max_in_flight,
             {.value = "N",
              .help = "Open loop: a request that is due while so many are in flight is not sent, "
                      "and counted.",
              .minimum = 1,
              .maximum = 65536});
  table->Add("requests", &flags->requests,
             {.value = "N",
              .help = "Ends after N requests; 0: 100, or without end if --duration is given.",
              .maximum = 1e9});
  table->Add("duration", &flags->duration,
             {.value = "DURATION",
              .help = "Sends no more after that time; 0: no limit.",
              .maximum = 86400});
  table->Add("warmup", &flags->warmup,
             {.value = "N",
              .help = "Requests sent before, in a closed loop, that do not count.",
              .maximum = 1e6});
  table->Add("channels", &flags->channels,
             {.value = "N", .help = "Connections.", .minimum = 1, .maximum = 256});
}

FlagTable Flags(BenchFlags* flags) {
  FlagTable table(kUsage);
  AddClientFlags(&table, &flags->client);
  AddLoadFlags(&table, flags);
  const std::string syntax(LengthDistribution::kSyntax);
  table.Add("prompt-tokens", &flags->prompt_tokens,
            {.value = "LENGTHS",
             .help = absl::StrCat("Lengths of prompts made of random token ids: ", syntax, ".")});
  table.Add("output-tokens", &flags->output_tokens,
            {.value = "LENGTHS",
             .help = "Lengths of outputs, as above. The end of sequence is ignored, so they hold; "
                     "prompt and output are cut to the context."});
  table.Add("prompts", &flags->prompts,
            {.value = "FILE", .help = "Text prompts, one a line, taken in turn; instead of ids."});
  table.Add("temperature", &flags->temperature,
            {.value = "X", .help = "Unset: the model's own default.", .minimum = 0});
  table.Add("seed", &flags->seed, {.value = "N", .help = "Of lengths, ids, draws and arrivals."});
  table.Add("json", &flags->json,
            {.value = "FILE",
             .help = "Write the report as JSON too; -: to standard output, "
                     "instead of the table."});
  table.Add("roofline", &flags->roofline, {.help = "Compare with the machine's limits."});
  table.Add("weight-bytes", &flags->weight_bytes,
            {.value = "BYTES",
             .help = "Bytes of weights that a decode step reads; 0: from the checkpoint."});
  table.Add("checkpoint", &flags->checkpoint,
            {.value = "DIR",
             .help = "Where --roofline finds config.json. Unset: where the server says."});
  return table;
}

int Processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::string& path) {
  std::vector<std::string> prompts;
  if (path.empty()) return prompts;
  const auto text = ReadText(path);
  if (!text.ok()) return text.status();
  prompts = absl::StrSplit(*text, '\n', absl::SkipWhitespace());
  if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no prompts"));
  return prompts;
}

absl::StatusOr<WorkloadOptions> MakeWorkload(const BenchFlags& flags) {
  const auto prompt_tokens = LengthDistribution::Parse(flags.prompt_tokens);
  if (!prompt_tokens.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt-tokens: ", prompt_tokens.status().message()));
  }
  const auto output_tokens = LengthDistribution::Parse(flags.output_tokens);
  if (!output_tokens.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--output-tokens: ", output_tokens.status().message()));
  }
  auto prompts = ReadPrompts(flags.prompts);
  if (!prompts.ok()) return prompts.status();
  return WorkloadOptions{.prompt_tokens = *prompt_tokens,
                         .output_tokens = *output_tokens,
                         .prompts = *std::move(prompts),
                         .temperature = flags.temperature,
                         .seed = flags.seed};
}

LoadOptions MakeLoad(const BenchFlags& flags) {
  LoadOptions options;
  options.address = flags.client.address;
  options.timeout = flags.client.timeout;
  options.channels = flags.channels;
  options.concurrency = flags.concurrency;
  options.rate = flags.rate;
  options.max_in_flight = flags.max_in_flight;
  options.seed = flags.seed;
  const bool timed = flags.duration > absl::ZeroDuration();
  if (timed) options.duration = flags.duration;
  constexpr uint64_t kDefault = 100;
  options.requests = flags.requests > 0 ? flags.requests : timed ? UINT64_MAX : kDefault;
  return options;
}

// Of a folder, or of what a recipe makes.
absl::StatusOr<ModelConfig> ConfigOf(const std::string& checkpoint) {
  if (!IsRecipe(checkpoint)) return LoadModelConfig(checkpoint);
  auto plan = PlanMerge(checkpoint, [](const std::string& name) { return FindInHubCache(name); });
  if (!plan.ok()) return plan.status();
  return std::move(plan->config);
}

absl::StatusOr<ModelCost> FindCost(const BenchFlags& flags, const v1::Model& model) {
  const auto config = ConfigOf(flags.checkpoint.empty() ? model.checkpoint() : flags.checkpoint);
  if (!config.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--roofline needs the model's shapes; --checkpoint=DIR says where they are (",
                     config.status().message(), ")"));
  }
  auto cost = CostOf(*config, model.quantization());
  if (cost.ok() && flags.weight_bytes > 0) cost->weight_bytes = flags.weight_bytes;
  return cost;
}

absl::Status WriteJson(const std::string& path, const std::string& json) {
  FILE* const file = std::fopen(path.c_str(), "wb");
  const bool written =
      file != nullptr && std::fwrite(json.data(), 1, json.size(), file) == json.size();
  if (file != nullptr && std::fclose(file) == 0 && written) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", std::strerror(errno)));
}

// The load in parts, with the machine's limits measured before and after each.
absl::Status RunRounds(const BenchFlags& flags,
                       const std::function<v1::GenerateRequest(uint64_t index)>& request,
                       BenchReport* report) {
  auto cost = FindCost(flags, report->model);
  if (!cost.ok()) return cost.status();
  auto meter = LimitMeter::Create(Processors());
  if (!meter.ok()) return meter.status();
  constexpr uint64_t kMostRounds = 16;
  constexpr int kMeasurements = 5;
  RooflineReport& roofline = report->roofline.emplace();
  roofline.cost = *cost;
  roofline.batch = flags.concurrency;
  LoadOptions part = report->options;
  part.requests = std::max<uint64_t>(report->options.requests / kMostRounds,
                                     static_cast<uint64_t>(flags.concurrency));
  uint64_t sent = 0;
  const absl::Time end = absl::Now() + report->options.duration;
  MachineLimits before = meter->MeasureUsual(kMeasurements);
  while (sent < report->options.requests && absl::Now() < end && !report->result.gave_up) {
    part.requests = std::min(part.requests, report->options.requests - sent);
    part.duration = end - absl::Now();
    const LoadResult result = RunLoad(part, request, flags.warmup + sent);
    sent += part.requests;
    const MachineLimits after = meter->MeasureUsual(kMeasurements);
    roofline.rounds.push_back(CompareWithLimits(before, after, *cost, roofline.batch, result));
    report->result.Add(result);
    before = after;
  }
  return absl::OkStatus();
}

absl::StatusOr<BenchReport> Measure(const BenchFlags& flags, WorkloadOptions workload_options) {
  BenchReport report;
  auto model = Client(flags.client).GetModel();
  if (!model.ok()) return model.status();
  report.model = *std::move(model);
  workload_options.vocabulary_size = report.model.vocabulary_size();
  workload_options.context_length = report.model.context_length();
  if (workload_options.vocabulary_size <= Workload::kFirstId ||
      workload_options.context_length < 2) {
    return absl::UnavailableError(absl::StrCat(
        "the server does not say its model's vocabulary and context yet: is it ready?"));
  }
  const Workload workload(std::move(workload_options));
  const auto request = [&workload](uint64_t index) { return workload.Request(index); };

  report.options = MakeLoad(flags);
  if (flags.warmup > 0) {
    LoadOptions warmup = report.options;
    warmup.rate = 0;
    warmup.requests = flags.warmup;
    warmup.duration = absl::InfiniteDuration();
    RunLoad(warmup, request);
  }
  if (flags.roofline) {
    if (absl::Status status = RunRounds(flags, request, &report); !status.ok()) return status;
  } else {
    report.result = RunLoad(report.options, request, flags.warmup);
  }
  return report;
}

}  // namespace

int BenchCommand(const std::vector<std::string>& arguments) {
  BenchFlags flags;
  const CommandArguments parsed = ParseCommand("bench", Flags(&flags), arguments, 0);
  if (parsed.exit_code) return *parsed.exit_code;
  auto workload = MakeWorkload(flags);
  if (!workload.ok()) return UsageError("bench", workload.status().message());
  if (flags.roofline && flags.rate > 0) {
    return UsageError("bench", "--roofline needs a closed loop: --concurrency, not --rate");
  }
  const auto report = Measure(flags, *std::move(workload));
  if (!report.ok()) return Failure("bench", report.status());
  const std::string json = ReportJson(*report);
  std::fputs(flags.json == "-" ? json.c_str() : ReportTable(*report).c_str(), stdout);
  if (!flags.json.empty() && flags.json != "-") {
    if (absl::Status status = WriteJson(flags.json, json); !status.ok()) {
      return Failure("bench", status);
    }
  }
  return report->result.succeeded > 0 ? 0 : kExitFailure;
}

}  // namespace marcoro
