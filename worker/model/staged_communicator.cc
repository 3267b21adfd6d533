#include "worker/model/staged_communicator.h"

namespace marcoro {

absl::Status StagedCommunicator::Download(absl::Span<const float> data) {
  sent_.resize(data.size());
  return backend_.Download(data.data(), sent_.data(), data.size() * sizeof(float));
}

absl::Status StagedCommunicator::AllReduceTree(absl::Span<float> data) {
  if (size() == 1) return absl::OkStatus();
  if (absl::Status status = Download(data); !status.ok()) return status;
  absl::Status status = communicator_.AllReduceTree(absl::MakeSpan(sent_));
  if (!status.ok()) return status;
  return backend_.Upload(sent_.data(), data.data(), data.size() * sizeof(float));
}

absl::Status StagedCommunicator::GatherToRoot(absl::Span<const float> send,
                                              absl::Span<float> receive) {
  if (absl::Status status = Download(send); !status.ok()) return status;
  received_.resize(receive.size());
  absl::Status status = communicator_.GatherToRoot(sent_, absl::MakeSpan(received_));
  if (!status.ok()) return status;
  return backend_.Upload(received_.data(), receive.data(), receive.size() * sizeof(float));
}

absl::Status StagedCommunicator::BroadcastIds(absl::Span<int32_t> ids) {
  ids_.resize(ids.size());
  const size_t bytes = ids.size() * sizeof(int32_t);
  if (rank() == 0) {
    if (absl::Status status = backend_.Download(ids.data(), ids_.data(), bytes); !status.ok()) {
      return status;
    }
  }
  absl::Status status = communicator_.BroadcastIds(absl::MakeSpan(ids_));
  if (!status.ok() || rank() == 0) return status;
  return backend_.Upload(ids_.data(), ids.data(), bytes);
}

}  // namespace marcoro
