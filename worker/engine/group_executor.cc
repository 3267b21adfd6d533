#include "worker/engine/group_executor.h"

namespace marcoro {

absl::StatusOr<Tensor> GroupExecutor::Execute(const StepPlan& plan) {
  const Watchdog::Armed armed(&watchdog_, "a step");
  if (absl::Status status = broadcast_.SendStep(plan); !status.ok()) return status;
  return transformer_.Forward(plan);
}

absl::Status GroupExecutor::Heartbeat() {
  const Watchdog::Armed armed(&watchdog_, "a heartbeat");
  return broadcast_.SendHeartbeat();
}

absl::Status RunPeer(StepBroadcast& broadcast, Transformer& transformer, Watchdog& watchdog) {
  StepPlan plan;
  while (true) {
    const absl::StatusOr<StepBroadcast::Kind> kind = broadcast.Receive(&plan);
    if (!kind.ok()) return kind.status();
    if (*kind == StepBroadcast::Kind::kShutdown) return absl::OkStatus();
    if (*kind == StepBroadcast::Kind::kHeartbeat) continue;
    const Watchdog::Armed armed(&watchdog, "a step");
    const absl::StatusOr<Tensor> logits = transformer.Forward(plan);
    if (!logits.ok()) return logits.status();
  }
}

}  // namespace marcoro
