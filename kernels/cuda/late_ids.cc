#include "kernels/cuda/late_ids.h"

#include <algorithm>

#include "kernels/check.h"

namespace marcoro::cuda {

absl::StatusOr<std::unique_ptr<LateIds>> LateIds::Create(Stream stream, size_t most,
                                                         const SampledSequence* sequences) {
  auto copied = CreateEvent();
  if (!copied.ok()) return copied.status();
  auto ids = std::unique_ptr<LateIds>(new LateIds(*copied, sequences));
  absl::Status status = ids->pinned_.Reserve(stream, most * sizeof(LateId));
  if (status.ok()) status = ids->device_.Reserve(stream, most * sizeof(LateId));
  if (!status.ok()) return status;
  ids->late_.reserve(most);
  return ids;
}

absl::Status LateIds::Write(Stream stream, int32_t* ids, int rows) {
  if (late_.empty()) return absl::OkStatus();
  const size_t bytes = late_.size() * sizeof(LateId);
  MARCORO_CHECK(bytes <= pinned_.bytes());
  for (const LateId& late : late_) MARCORO_CHECK(late.row >= 0 && late.row < rows);
  // Those of the step before: copied before that step began.
  if (absl::Status status = WaitForEvent(copied_); !status.ok()) return status;
  std::copy(late_.begin(), late_.end(), static_cast<LateId*>(pinned_.data()));
  CopyToDevice(stream, device_.data(), pinned_.data(), bytes);
  MarkEvent(stream, copied_);
  WriteLateIds(stream, static_cast<const LateId*>(device_.data()), static_cast<int>(late_.size()),
               sequences_, ids);
  late_.clear();
  return absl::OkStatus();
}

}  // namespace marcoro::cuda
