// Random lives of a scheduler. A failure names its seed; MARCORO_SIMULATION_SEED=<seed> runs that
// one alone.
#include "tests/worker/scheduler/simulation.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

constexpr uint64_t kSeeds = 500;
constexpr int32_t kSteps = 200;

SimulationTotals RunSeed(uint64_t seed, bool late_tokens) {
  SCOPED_TRACE(absl::StrCat("MARCORO_SIMULATION_SEED=", seed));
  return Simulation(seed, late_tokens).Run(kSteps);
}

// Whether tokens come in time or a step late.
class SchedulerSimulationTest : public ::testing::TestWithParam<bool> {};

TEST_P(SchedulerSimulationTest, KeepsItsPromisesInRandomLives) {
  const bool late_tokens = GetParam();
  if (const char* seed = std::getenv("MARCORO_SIMULATION_SEED")) {
    RunSeed(std::stoull(seed), late_tokens);
    return;
  }
  SimulationTotals sum;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const SimulationTotals totals = RunSeed(seed, late_tokens);
    if (HasFailure()) return;
    sum.steps += totals.steps;
    sum.finished += totals.finished;
    sum.cancelled += totals.cancelled;
    sum.poisoned += totals.poisoned;
    sum.expired += totals.expired;
    sum.refused += totals.refused;
    sum.preemptions += totals.preemptions;
    sum.prefix_hit_tokens += totals.prefix_hit_tokens;
    sum.shared_blocks += totals.shared_blocks;
    sum.zeroed_blocks += totals.zeroed_blocks;
    sum.prompt_rows += totals.prompt_rows;
    sum.late_tokens += totals.late_tokens;
    sum.wasted += totals.wasted;
  }
  std::printf(
      "%lu steps: %lu finished, %lu cancelled, %lu poisoned, %lu expired, %lu refused, %lu "
      "preemptions, %lu tokens from the cache, %lu blocks shared, %lu zeroed, %lu prompt rows, %lu "
      "late tokens, %lu wasted\n",
      sum.steps, sum.finished, sum.cancelled, sum.poisoned, sum.expired, sum.refused,
      sum.preemptions, sum.prefix_hit_tokens, sum.shared_blocks, sum.zeroed_blocks, sum.prompt_rows,
      sum.late_tokens, sum.wasted);
  // Every kind of event happened often enough to mean something.
  EXPECT_GE(sum.finished, kSeeds);
  EXPECT_GE(sum.cancelled, kSeeds);
  EXPECT_GE(sum.poisoned, kSeeds / 2);
  EXPECT_GE(sum.expired, kSeeds / 2);
  EXPECT_GE(sum.refused, kSeeds);
  EXPECT_GE(sum.preemptions, kSeeds / 2);
  EXPECT_GE(sum.prefix_hit_tokens, kSeeds * 16);
  EXPECT_GE(sum.shared_blocks, kSeeds);
  EXPECT_GE(sum.zeroed_blocks, kSeeds);
  EXPECT_GE(sum.prompt_rows, kSeeds);
  if (late_tokens) {
    EXPECT_GE(sum.late_tokens, kSeeds * kSteps);
    EXPECT_GE(sum.wasted, kSeeds);
  }
}

TEST_P(SchedulerSimulationTest, EqualCallsGiveEqualPlans) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    EXPECT_EQ(RunSeed(seed, GetParam()).digest, RunSeed(seed, GetParam()).digest) << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Tokens, SchedulerSimulationTest, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "OneStepLate" : "InTime"; });

}  // namespace
}  // namespace marcoro
