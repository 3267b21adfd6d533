// How the engine runs a step: on this rank and, in a group, on its peers.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

class StepExecutor {
 public:
  virtual ~StepExecutor() = default;
  // Logits of the plan's rows (Σ logit_rows, V) F32, in the backend's memory, valid until the next
  // call. The plan's late tokens are what the backend's own sampler has been told to supply. An
  // error means that the group is lost.
  virtual absl::StatusOr<Tensor> Execute(const StepPlan& plan) = 0;
  // Tells peers that this rank is alive; called while there is nothing to execute.
  virtual absl::Status Heartbeat() = 0;
};

}  // namespace marcoro
