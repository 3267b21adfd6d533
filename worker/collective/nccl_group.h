// Sums in tree order and gathers, by NCCL. Needs CUDA.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "worker/collective/nccl_library.h"
#include "worker/collective/nccl_rendezvous.h"

namespace marcoro {

struct NcclGroupOptions {
  int rank = 0;
  int size = 2;
  absl::Duration timeout = absl::Seconds(60);  // for the host's side of an operation
};

// Never blocks the host for longer than the timeout, whatever peers do.
class NcclGroup {
 public:
  // Every rank has a GPU of its own. Fails on all ranks if it did on one: UNAVAILABLE,
  // DEADLINE_EXCEEDED or, for a failure elsewhere and without NCCL's library, FAILED_PRECONDITION.
  static absl::StatusOr<std::unique_ptr<NcclGroup>> Connect(const NcclGroupOptions& options,
                                                            Rendezvous& rendezvous);
  ~NcclGroup() { Abort(); }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  // These queue on the stream. `data` becomes the tree over the ranks of each element; `scratch`,
  // in device memory too, has kReduceScratchElements.
  absl::Status AllReduce(cudaStream_t stream, float* data, size_t count, float* scratch);
  // As Communicator::GatherToRoot.
  absl::Status Gather(cudaStream_t stream, const float* send, size_t count, float* receive);
  // As Communicator::BroadcastIds.
  absl::Status Broadcast(cudaStream_t stream, int32_t* ids, size_t count);

  // What NCCL found on its own threads. For any thread.
  absl::Status Check() const ABSL_LOCKS_EXCLUDED(mutex_);
  // What waits on the stream ends, and everything after that fails. For any thread.
  void Abort() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  NcclGroup(const NcclGroupOptions& options, const NcclLibrary& nccl)
      : options_(options), nccl_(nccl) {}

  absl::Status ReduceWhole(cudaStream_t stream, float* data, size_t count, float* scratch);
  absl::Status ReduceBySlices(cudaStream_t stream, float* data, size_t count, float* scratch);
  // Calls NCCL, then waits on the host until it has queued what it was asked for.
  absl::Status Call(const char* what, absl::Duration timeout,
                    const std::function<ncclResult_t()>& call) const ABSL_LOCKS_EXCLUDED(mutex_);
  ncclResult_t AsyncError() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const NcclGroupOptions options_;
  const NcclLibrary& nccl_;
  // Held for one call of NCCL's at a time, none of which waits.
  mutable absl::Mutex mutex_;
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
  ncclComm_t comm_ = nullptr;  // used within Call and under mutex_
};

}  // namespace marcoro
