// The memory that the one-shot kernels of a group's ranks exchange through, shared between their
// processes by CUDA IPC. Needs CUDA.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cuda/all_reduce.h"
#include "worker/collective/nccl_rendezvous.h"

namespace marcoro {

struct PeerMemoryOptions {
  int rank = 0;
  int size = 2;
  int slot_elements = 4096;
  absl::Duration patience = absl::Seconds(60);  // with a peer, in one exchange
};

class MappedPeerMemory {
 public:
  // Allocates this rank's memory, maps the others', and returns when all ranks have. Fails on all
  // ranks if it did on one: FAILED_PRECONDITION if a GPU cannot reach another's memory.
  static absl::StatusOr<std::unique_ptr<MappedPeerMemory>> Connect(const PeerMemoryOptions& options,
                                                                   Rendezvous& rendezvous);
  ~MappedPeerMemory();
  MappedPeerMemory(const MappedPeerMemory&) = delete;
  MappedPeerMemory& operator=(const MappedPeerMemory&) = delete;

  // For the kernels.
  const cuda::PeerMemory& peers() const { return peers_; }

  // DEADLINE_EXCEEDED, naming the rank, if a kernel gave up. For any thread.
  absl::Status Check() const;

 private:
  explicit MappedPeerMemory(const PeerMemoryOptions& options);
  absl::StatusOr<std::string> Allocate();
  absl::Status Map(const std::vector<std::string>& handles);

  const PeerMemoryOptions options_;
  cuda::PeerMemory peers_;
};

}  // namespace marcoro
