// The bench itself: its arithmetic by hand, its limits within what any machine can do, and the
// program as a user runs it.
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/bench/limits.h"
#include "kernels/bench/measurement.h"

namespace marcoro {
namespace {

using testing::HasSubstr;

struct ProgramResult {
  int exit_status = -1;
  std::string output;  // stdout and stderr
};

ProgramResult RunKernelsBench(const std::string& arguments) {
  ProgramResult result;
  const std::string command = std::string(MARCORO_BIN_DIR) + "/kernels_bench " + arguments;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return result;
  std::array<char, 4096> chunk;
  while (const size_t bytes = fread(chunk.data(), 1, chunk.size(), pipe)) {
    result.output.append(chunk.data(), bytes);
  }
  result.exit_status = pclose(pipe);
  return result;
}

TEST(MachineLimits, TimeIsThatOfTheScarcerResource) {
  const MachineLimits limits = {.read_bytes_per_second = 10e9, .bf16_flops = 1e12};
  EXPECT_DOUBLE_EQ(limits.Seconds(20e9, 1e12), 2.0);
  EXPECT_DOUBLE_EQ(limits.Seconds(20e9, 5e12), 5.0);
}

TEST(MachineLimits, BestTakesTheLargerOfEach) {
  const MachineLimits best = Best({1, 40}, {2, 30});
  EXPECT_EQ(best.read_bytes_per_second, 2);
  EXPECT_EQ(best.bf16_flops, 40);
}

TEST(MachineLimits, AreWithinWhatMachinesDo) {
  for (int threads : {1, 2}) {
    absl::StatusOr<LimitMeter> meter = LimitMeter::Create(threads);
    ASSERT_TRUE(meter.ok()) << meter.status();
    const MachineLimits limits = meter->Measure(2);
    EXPECT_GT(limits.read_bytes_per_second, 1e8);
    EXPECT_LT(limits.read_bytes_per_second, 1e12);
    EXPECT_GT(limits.bf16_flops, 1e8);
    // Two 512-bit dot products a cycle at 8 GHz on each thread: more means that the compiler
    // dropped work.
    EXPECT_LT(limits.bf16_flops, threads * 2 * 64 * 8e9);
  }
}

TEST(Measurement, RatioIsTheMinimumTimeOverTheTimeTaken) {
  const Measurement m = {.op = "matmul o",
                         .shape = "T=8",
                         .bytes = 30e9,
                         .flops = 2e12,
                         .best_seconds = 4.0,
                         .median_seconds = 5.0,
                         .limits = {.read_bytes_per_second = 10e9, .bf16_flops = 1e12}};
  EXPECT_DOUBLE_EQ(m.Ratio(), 0.75);
  EXPECT_DOUBLE_EQ(m.BytesPerSecond(), 7.5e9);
  EXPECT_DOUBLE_EQ(m.FlopsPerSecond(), 0.5e12);

  const BenchInfo info = {.backend = "avx2", .threads = 3, .limits = m.limits};
  std::ostringstream table;
  PrintTable(info, {m}, table);
  EXPECT_THAT(table.str(),
              HasSubstr("backend avx2, 3 threads, read 10.0 GB/s, bf16 peak 1.000 TFLOP/s"));
  EXPECT_THAT(table.str(), testing::ContainsRegex("matmul o +T=8 +4000000.0 +5000000.0 +7.5 +0.500 "
                                                  "+0.75"));

  std::ostringstream text;
  PrintJson(info, {m}, text);
  const nlohmann::json json = nlohmann::json::parse(text.str());
  EXPECT_EQ(json["limits"]["read_bytes_per_second"], 10e9);
  EXPECT_EQ(json["results"][0]["op"], "matmul o");
  EXPECT_EQ(json["results"][0]["ratio"], 0.75);
}

TEST(Measurement, RunsTheCaseWithIncreasingRepetitions) {
  absl::StatusOr<LimitMeter> meter = LimitMeter::Create(1);
  ASSERT_TRUE(meter.ok()) << meter.status();
  std::vector<int64_t> repetitions;
  OpCase op_case{
      .op = "op", .shape = "shape", .bytes = 1, .flops = 1, .run = [&](int64_t repetition) {
        repetitions.push_back(repetition);
      }};
  const Measurement m = Measure(
      op_case, *meter, {.slices = 3, .seconds_per_slice = 0, .min_repetitions_per_slice = 2});
  EXPECT_THAT(repetitions, testing::ElementsAre(0, 1, 2, 3, 4, 5, 6));
  EXPECT_LE(m.best_seconds, m.median_seconds);
  EXPECT_GT(m.limits.read_bytes_per_second, 0);
}

TEST(KernelsBench, MeasuresEveryOpOfTheBackend) {
  const ProgramResult result = RunKernelsBench("--quick --json --threads=2");
  ASSERT_EQ(result.exit_status, 0) << result.output;
  const nlohmann::json report = nlohmann::json::parse(result.output);
  EXPECT_EQ(report["threads"], 2);
  std::set<std::string> ops;
  for (const nlohmann::json& row : report["results"]) {
    ops.insert(row["op"]);
    EXPECT_GT(row["best_seconds"], 0) << row;
    EXPECT_GT(row["ratio"], 0) << row;
  }
  EXPECT_THAT(ops, testing::IsSupersetOf({"matmul qkv", "matmul o", "attention decode",
                                          "attention prefill", "rope", "rms_norm", "add_rms_norm",
                                          "swiglu", "embed", "summarize_logits"}));
}

TEST(KernelsBench, FilterChoosesByOpAndShape) {
  const ProgramResult result =
      RunKernelsBench("--quick --json --backend=reference --filter='rms_norm T=1'");
  ASSERT_EQ(result.exit_status, 0) << result.output;
  const nlohmann::json report = nlohmann::json::parse(result.output);
  EXPECT_EQ(report["backend"], "reference");
  ASSERT_EQ(report["results"].size(), 2u);
  EXPECT_EQ(report["results"][0]["op"], "rms_norm");
  EXPECT_EQ(report["results"][1]["op"], "add_rms_norm");
}

TEST(KernelsBench, SaysWhatIsWrong) {
  const ProgramResult unknown = RunKernelsBench("--backend=abacus");
  EXPECT_NE(unknown.exit_status, 0);
  EXPECT_THAT(unknown.output, HasSubstr("unknown backend 'abacus'"));
  const ProgramResult nothing = RunKernelsBench("--quick --filter=nothing");
  EXPECT_NE(nothing.exit_status, 0);
  EXPECT_THAT(nothing.output, HasSubstr("--filter"));
  EXPECT_NE(RunKernelsBench("--threads=0").exit_status, 0);
}

}  // namespace
}  // namespace marcoro
