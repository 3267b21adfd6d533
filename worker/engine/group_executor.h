// Both ends of a step in a tensor-parallel group: rank 0 sends the plan and executes it, peers
// receive and execute.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/step_executor.h"
#include "worker/group/step_broadcast.h"
#include "worker/group/watchdog.h"
#include "worker/model/transformer.h"

namespace marcoro {

// Rank 0. The watchdog ends the process if a step hangs; a group of one needs no broadcast and no
// watchdog, but has them.
class GroupExecutor final : public StepExecutor {
 public:
  // All of them outlive the executor.
  GroupExecutor(StepBroadcast& broadcast, Transformer& transformer, Watchdog& watchdog)
      : broadcast_(broadcast), transformer_(transformer), watchdog_(watchdog) {}

  absl::StatusOr<Tensor> Execute(const StepPlan& plan) override;
  absl::Status Heartbeat() override;

 private:
  StepBroadcast& broadcast_;
  Transformer& transformer_;
  Watchdog& watchdog_;
};

// Peers: executes what rank 0 sends until it says shutdown (OK) or is lost.
absl::Status RunPeer(StepBroadcast& broadcast, Transformer& transformer, Watchdog& watchdog);

}  // namespace marcoro
