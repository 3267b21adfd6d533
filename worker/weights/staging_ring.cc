#include "worker/weights/staging_ring.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace marcoro {

absl::StatusOr<std::unique_ptr<StagingRing>> StagingRing::Create(MakeStage make, size_t stage_bytes,
                                                                 int most) {
  MARCORO_CHECK(stage_bytes > 0 && most > 0);
  // The first tells whether there are any.
  auto first = make(stage_bytes);
  if (!first.ok()) return first.status();
  if (*first == nullptr) return nullptr;
  const auto affordable = static_cast<int>(std::min<size_t>(kMostBytes / stage_bytes, 1 << 20));
  std::unique_ptr<StagingRing> ring(
      new StagingRing(std::move(make), stage_bytes, std::clamp(affordable, 1, most)));
  absl::MutexLock lock(&ring->mutex_);
  ring->made_ = 1;
  ring->returned_.push_back({*std::move(first), {}});
  return ring;
}

absl::StatusOr<Stage> StagingRing::Take() {
  Stage stage;
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &StagingRing::CanTake));
    if (made_ < most_) {
      ++made_;
    } else {
      stage = std::move(returned_.front());
      returned_.pop_front();
    }
  }
  if (stage.rows == nullptr) return Make();
  absl::Status status = WaitFor(stage);
  if (status.ok()) return stage;
  Return(std::move(stage));
  return status;
}

// For the place that has been counted.
absl::StatusOr<Stage> StagingRing::Make() {
  auto rows = make_(stage_bytes_);
  if (rows.ok()) return Stage{*std::move(rows), {}};
  absl::MutexLock lock(&mutex_);
  --made_;
  return rows.status();
}

void StagingRing::Return(Stage stage) {
  absl::MutexLock lock(&mutex_);
  returned_.push_back(std::move(stage));
}

absl::Status StagingRing::Finish() {
  absl::Status first;
  absl::MutexLock lock(&mutex_);
  MARCORO_CHECK(static_cast<int>(returned_.size()) == made_);
  for (Stage& stage : returned_) first.Update(WaitFor(stage));
  return first;
}

absl::Status StagingRing::WaitFor(Stage& stage) {
  const auto finite = stage.rows->Wait();
  const auto explain = std::exchange(stage.explain, nullptr);
  if (!finite.ok()) return finite.status();
  if (*finite || !explain) return absl::OkStatus();
  return explain();
}

}  // namespace marcoro
