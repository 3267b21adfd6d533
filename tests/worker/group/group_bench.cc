// Measures what a step's plan costs on its way to one peer: group_bench. Prints the median of
// serialising, sending, receiving and answering.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "tests/worker/collective/ranks.h"
#include "worker/group/step_broadcast.h"

namespace marcoro {
namespace {

StepPlan PlanOf(int sequences, int blocks_each) {
  StepPlan plan;
  for (int i = 0; i < sequences; ++i) {
    plan.sequences.push_back({0, 16 * blocks_each - 1, 1, blocks_each, 1});
    plan.tokens.push_back(32000 - i);
    for (int block = 0; block < blocks_each; ++block) {
      plan.blocks.push_back(i * blocks_each + block);
    }
  }
  return plan;
}

absl::Status RunRound(StepBroadcast& broadcast, int rank, const StepPlan& plan) {
  if (rank == 0) {
    if (absl::Status status = broadcast.SendStep(plan); !status.ok()) return status;
    return broadcast.SendHeartbeat();
  }
  StepPlan received;
  if (absl::Status status = broadcast.Receive(&received).status(); !status.ok()) return status;
  return broadcast.Receive(&received).status();
}

int RunRank(const std::string& transport, const std::string& folder, int rank) {
  FolderKeyStore keys(folder);
  auto control = Connect(transport, rank, 2, keys, absl::Seconds(60));
  if (!control.ok()) return 1;
  StepBroadcast broadcast(control->get());
  for (const auto& [sequences, blocks] : {std::pair(0, 0), {1, 8}, {16, 64}, {256, 256}}) {
    const StepPlan plan = PlanOf(sequences, blocks);
    std::vector<double> microseconds;
    for (int i = 0; i < 500; ++i) {
      const auto start = std::chrono::steady_clock::now();
      if (!RunRound(broadcast, rank, plan).ok()) return 1;
      const std::chrono::duration<double, std::micro> took =
          std::chrono::steady_clock::now() - start;
      microseconds.push_back(took.count());
    }
    std::sort(microseconds.begin(), microseconds.end());
    if (rank != 0) continue;
    std::printf("%-13s %3d sequences x %3d blocks, plan and answered heartbeat: %8.1f us\n",
                transport.c_str(), sequences, blocks, microseconds[microseconds.size() / 2]);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace marcoro

int main() {
  for (const char* transport : {"shared-memory", "gloo"}) {
    marcoro::TemporaryFolder folder;
    for (const int status : marcoro::RunInProcesses(
             2, [&](int rank) { return marcoro::RunRank(transport, folder.path(), rank); })) {
      if (status != 0) return 1;
    }
  }
}
