// Collectives between GPUs: NCCL for large messages, one-shot kernels over the ranks' mapped memory
// (kernels/cuda/all_reduce.h) for small ones, and for all where ranks share a GPU, which NCCL
// refuses.
//
// Operations are queued on the backend's stream and never wait for the GPU, so that steps with them
// can be captured in CUDA graphs. A thread watches over what is queued.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collective/communicator.h"
#include "worker/collective/key_store.h"
#include "worker/collective/nccl_rendezvous.h"

namespace marcoro {

struct NcclOptions {
  int rank = 0;
  int size = 2;      // 2, 4 or 8
  std::string host;  // what tells this rank's host from others; empty: share with no other rank
  void* stream = nullptr;  // the cudaStream_t that the backend's ops run on
  int hidden_size = 0;     // columns of what is summed most
  DeviceCollective collective = DeviceCollective::kAuto;
  // Keeps this communicator's keys apart from others in the same store.
  std::string key_prefix = "device";
  absl::Duration connect_timeout = absl::Seconds(60);
  // Longest time that one operation may take on the GPU.
  absl::Duration timeout = absl::Seconds(60);
  // Called once, from a thread of the communicator, if a peer is lost (DEADLINE_EXCEEDED,
  // UNAVAILABLE) or the GPU (INTERNAL). It should end the process, before anything is made of what
  // the collective left; if it returns, the stream is freed of what waits, and every operation
  // returns the status.
  std::function<void(const absl::Status&)> on_failure;
};

// Connects this rank, with the GPU that the calling thread works with, to all others, and sums a
// test vector. `host` carries BroadcastFromRoot and outlives the communicator; so does the stream.
// Null if the ranks' choice or their places ask for staged collectives. FAILED_PRECONDITION, on all
// ranks, if rank 0's choice is not possible, NCCL is asked for and its library is not there, or
// this program was built without CUDA; UNAVAILABLE or DEADLINE_EXCEEDED if a rank cannot be
// reached.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(const NcclOptions& options,
                                                                   KeyStore& keys,
                                                                   Communicator& host);

}  // namespace marcoro
