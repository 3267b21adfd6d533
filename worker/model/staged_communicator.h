// Lets a communicator that carries the program's own memory serve a backend whose memory is
// elsewhere.
#pragma once

#include <string>
#include <vector>

#include "kernels/backend.h"
#include "worker/collective/communicator.h"

namespace marcoro {

// What is sent and received lies in the backend's memory, and passes through the program's. Fails
// also where the backend does.
class StagedCommunicator final : public Communicator {
 public:
  // Both outlive it.
  StagedCommunicator(Backend& backend, Communicator& communicator)
      : backend_(backend), communicator_(communicator) {}

  int rank() const override { return communicator_.rank(); }
  int size() const override { return communicator_.size(); }
  absl::Status AllReduceTree(absl::Span<float> data) override;
  absl::Status GatherToRoot(absl::Span<const float> send, absl::Span<float> receive) override;
  absl::Status BroadcastIds(absl::Span<int32_t> ids) override;
  absl::Status BroadcastFromRoot(std::string* message) override {
    return communicator_.BroadcastFromRoot(message);
  }

 private:
  absl::Status Download(absl::Span<const float> data);

  Backend& backend_;
  Communicator& communicator_;
  std::vector<float> sent_;
  std::vector<float> received_;
  std::vector<int32_t> ids_;
};

}  // namespace marcoro
