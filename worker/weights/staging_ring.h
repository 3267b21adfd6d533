// The stages of a backend (kernels/row_stage.h) in turn, so that threads read rows into some while
// the backend works on what lies in others.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/row_stage.h"

namespace marcoro {

// A stage, and who knows what lies in it.
struct Stage {
  std::unique_ptr<RowStage> rows;
  // Asked if a number in the stage's memory is not finite: the error that names its place. Not OK.
  // Called at most once for each time that it is set, by any thread.
  std::function<absl::Status()> explain;
};

// For several threads.
class StagingRing {
 public:
  // As Backend::MakeRowStage. Called by several threads at once.
  using MakeStage = std::function<absl::StatusOr<std::unique_ptr<RowStage>>(size_t bytes)>;

  // Bytes of all stages together, unless one alone takes more.
  static constexpr size_t kMostBytes = size_t{128} << 20;

  // Stages of stage_bytes each, made when they are needed: `most` of them, or as many as kMostBytes
  // allow. Null if there are none to be made.
  static absl::StatusOr<std::unique_ptr<StagingRing>> Create(MakeStage make, size_t stage_bytes,
                                                             int most);

  size_t stage_bytes() const { return stage_bytes_; }

  // A stage whose memory is free: a new one, or the one that was returned first, when what was
  // queued from it has happened. Waits while all are lent. RESOURCE_EXHAUSTED without memory; an
  // error of that work: INTERNAL if the device failed, else what `explain` told.
  absl::StatusOr<Stage> Take();
  // Every stage that was taken comes back.
  void Return(Stage stage);
  // Waits for all that was queued, once every stage is back. Errors as of Take; the first counts.
  absl::Status Finish();

 private:
  StagingRing(MakeStage make, size_t stage_bytes, int most)
      : make_(std::move(make)), stage_bytes_(stage_bytes), most_(most) {}
  bool CanTake() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return made_ < most_ || !returned_.empty();
  }
  absl::StatusOr<Stage> Make();
  static absl::Status WaitFor(Stage& stage);

  const MakeStage make_;
  const size_t stage_bytes_;
  const int most_;
  absl::Mutex mutex_;
  int made_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Stage> returned_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
