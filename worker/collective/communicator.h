// Collectives of a tensor-parallel group. One implementation per transport: single (world size 1),
// shared_memory (ranks on one host), gloo (TCP), nccl (GPUs).
//
// Every rank calls the same operations in the same order with the same sizes; a communicator is
// used by one thread at a time. Each operation either completes within the communicator's timeout
// or fails with UNAVAILABLE (a peer is gone) or DEADLINE_EXCEEDED (a peer hangs); after a failure
// the communicator is unusable and the process is expected to end.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/tensor.h"

namespace marcoro {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Whether what is sent and received lies in the program's own memory. Otherwise it lies in the
  // memory of the device that the communicator was made for, and an operation returns when it is
  // queued behind that device's ops: what fails later is told by a later operation, or ends the
  // process.
  virtual bool host_memory() const { return true; }

  // Whether what the operations queue on the device may be captured and repeated past them (see
  // Backend::MakeStepRunner): nothing of it depends on the host, and nothing waits for it.
  virtual bool repeatable() const { return size() == 1 || !host_memory(); }
  // Operations may have been repeated past the communicator: from here on it watches over them as
  // over those it queued itself. Fails if an earlier one did.
  virtual absl::Status NoteRepeated() { return absl::OkStatus(); }

  // UNAVAILABLE if a peer is gone, as far as the transport knows without waiting: Gloo does not.
  // May be asked at any time, by any thread.
  virtual absl::Status CheckPeers() const { return absl::OkStatus(); }

  // data becomes the element-wise float32 sum over all ranks, added as a balanced binary tree in
  // rank order,
  // ((0+1)+(2+3))+…, for every element whatever the message size, so that all ranks hold the same
  // bits. size() is a power of two.
  virtual absl::Status AllReduceTree(absl::Span<float> data) = 0;

  // AllReduceTree(delta), then residual += delta and out = RmsNorm(residual), as
  // Backend::AddRmsNorm, in one, with the same bits. delta's rows lie side by side, and are
  // unspecified afterwards. False, and nothing happened, if the communicator cannot do that for
  // this size.
  virtual absl::StatusOr<bool> AllReduceAddRmsNorm(const Tensor& residual, const Tensor& delta,
                                                   const float* weight, float epsilon,
                                                   const Tensor& out) {
    return false;
  }

  // Rank 0 receives every rank's `send` (the same length everywhere) side by side in rank order:
  // receive holds size() * send.size() elements on rank 0 and is ignored elsewhere.
  virtual absl::Status GatherToRoot(absl::Span<const float> send, absl::Span<float> receive) = 0;

  // ids, of any number, becomes rank 0's.
  virtual absl::Status BroadcastIds(absl::Span<int32_t> ids);

  // On rank 0 sends message; elsewhere replaces it by rank 0's.
  virtual absl::Status BroadcastFromRoot(std::string* message) = 0;
};

}  // namespace marcoro
