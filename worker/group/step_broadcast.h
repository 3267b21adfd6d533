// Carries each step's plan from rank 0 to its peers, with heartbeats in between and a shutdown at
// the end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/collective/communicator.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

namespace worker::v1 {
class StepMessage;
}

// One per rank, used by one thread at a time. After an error the group is broken and the process is
// expected to end.
class StepBroadcast {
 public:
  enum class Kind : uint8_t {
    kStep,       // execute the plan
    kHeartbeat,  // rank 0 is alive and has nothing to do; already answered
    kShutdown,   // leave cleanly
  };

  // `control` outlives this object.
  explicit StepBroadcast(Communicator* control);
  ~StepBroadcast();

  // Rank 0. In a group of one they return at once. Of the plan's late tokens peers hear the 0 that
  // stands for each: their devices get them from rank 0's.
  absl::Status SendStep(const StepPlan& plan);
  // Waits until every peer has answered, so that a hung peer is noticed (DEADLINE_EXCEEDED) as well
  // as a dead one (UNAVAILABLE). To be called whenever no step was sent for the group's
  // heartbeat_interval.
  absl::Status SendHeartbeat();
  absl::Status SendShutdown();

  // Peers: waits for rank 0's next message. `plan` is set for kStep, cleared otherwise; sequence
  // ids stay on rank 0 and are 0 here. DEADLINE_EXCEEDED if nothing came within the control
  // communicator's timeout, UNAVAILABLE if rank 0 is gone, INTERNAL if the message contradicts
  // itself or is out of turn.
  absl::StatusOr<Kind> Receive(StepPlan* plan);

 private:
  absl::Status Send();
  absl::Status ExchangeHeartbeatAnswers();

  Communicator* const control_;
  std::unique_ptr<worker::v1::StepMessage> message_;  // reused, so that its memory is
  std::string bytes_;
  uint64_t step_ = 0;  // messages so far
};

}  // namespace marcoro
