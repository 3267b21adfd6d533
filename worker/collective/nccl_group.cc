#include "worker/collective/nccl_group.h"

#include <cstring>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/runtime.h"
#include "worker/collective/nccl_plan.h"

namespace marcoro {

absl::StatusOr<std::unique_ptr<NcclGroup>> NcclGroup::Connect(const NcclGroupOptions& options,
                                                              Rendezvous& rendezvous) {
  const auto nccl = LoadNccl();
  if (absl::Status agreed = rendezvous.Agree("nccl-library", nccl.status()); !agreed.ok()) {
    return agreed;
  }
  ncclUniqueId id = {};
  ncclResult_t made = ncclSuccess;
  if (options.rank == 0) made = (*nccl)->GetUniqueId(&id);
  const absl::string_view value(id.internal, made == ncclSuccess ? sizeof(id.internal) : 0);
  const auto told = rendezvous.FromRoot("nccl-id", value);
  if (!told.ok()) return told.status();
  if (told->size() != sizeof(id.internal)) {
    return absl::UnavailableError(
        absl::StrCat("NCCL: rank 0 could not begin", options.rank == 0 ? ": " : "",
                     options.rank == 0 ? (*nccl)->GetErrorString(made) : ""));
  }
  std::memcpy(id.internal, told->data(), told->size());

  std::unique_ptr<NcclGroup> group(new NcclGroup(options, **nccl));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const absl::Status connected = group->Call("connecting", rendezvous.TimeLeft(), [&] {
    return (*nccl)->CommInitRankConfig(&group->comm_, options.size, id, options.rank, &config);
  });
  if (absl::Status agreed = rendezvous.Agree("nccl-connected", connected); !agreed.ok()) {
    return agreed;
  }
  return group;
}

ncclResult_t NcclGroup::AsyncError() const {
  ncclResult_t result = ncclSuccess;
  const ncclResult_t asked = nccl_.CommGetAsyncError(comm_, &result);
  return asked == ncclSuccess ? result : asked;
}

absl::Status NcclGroup::Call(const char* what, absl::Duration timeout,
                             const std::function<ncclResult_t()>& call) const {
  const absl::Time deadline = absl::Now() + timeout;
  for (bool first = true;; first = false) {
    {
      absl::MutexLock lock(&mutex_);
      if (aborted_) return absl::UnavailableError("NCCL: aborted");
      const ncclResult_t result = first ? call() : AsyncError();
      if (result == ncclSuccess) return absl::OkStatus();
      if (result != ncclInProgress) {
        return absl::UnavailableError(absl::StrCat("NCCL ", what, " on rank ", options_.rank, ": ",
                                                   nccl_.GetErrorString(result), ": ",
                                                   nccl_.GetLastError(comm_)));
      }
    }
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat("NCCL ", what, " on rank ", options_.rank,
                                                      " took longer than ",
                                                      absl::FormatDuration(timeout)));
    }
    std::this_thread::yield();
  }
}

absl::Status NcclGroup::Check() const {
  absl::MutexLock lock(&mutex_);
  if (aborted_) return absl::UnavailableError("NCCL: aborted");
  const ncclResult_t result = AsyncError();
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("NCCL on rank ", options_.rank, ": ",
                                             nccl_.GetErrorString(result), ": ",
                                             nccl_.GetLastError(comm_)));
}

// Never the orderly end, which waits for peers that may be gone.
void NcclGroup::Abort() {
  absl::MutexLock lock(&mutex_);
  if (aborted_ || comm_ == nullptr) return;
  aborted_ = true;
  nccl_.CommAbort(comm_);
}

absl::Status NcclGroup::AllReduce(cudaStream_t stream, float* data, size_t count, float* scratch) {
  for (const ReducePiece& piece : PlanReduce(count, options_.size)) {
    float* part = data + piece.begin;
    absl::Status status = piece.slices ? ReduceBySlices(stream, part, piece.count, scratch)
                                       : ReduceWhole(stream, part, piece.count, scratch);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status NcclGroup::ReduceWhole(cudaStream_t stream, float* data, size_t count,
                                    float* scratch) {
  absl::Status status = Call("all-gather", options_.timeout, [&] {
    return nccl_.AllGather(data, scratch, count, ncclFloat32, comm_, stream);
  });
  if (!status.ok()) return status;
  cuda::TreeParts parts;
  for (int rank = 0; rank < options_.size; ++rank) {
    parts.part[rank] = scratch + static_cast<size_t>(rank) * count;
  }
  cuda::TreeSum(stream, parts, options_.size, static_cast<int64_t>(count), data);
  return absl::OkStatus();
}

absl::Status NcclGroup::ReduceBySlices(cudaStream_t stream, float* data, size_t count,
                                       float* scratch) {
  const int size = options_.size;
  const int rank = options_.rank;
  const size_t slice = count / static_cast<size_t>(size);
  const auto slice_of = [slice](float* of, int index) {
    return of + static_cast<size_t>(index) * slice;
  };
  absl::Status status = Call("exchange of slices", options_.timeout, [&] {
    // What is wrong with a call within the group is told by its end. In this order no two ranks
    // begin with the same peer.
    nccl_.GroupStart();
    for (int distance = 1; distance < size; ++distance) {
      const int to = (rank + distance) % size;
      const int from = (rank + size - distance) % size;
      nccl_.Send(slice_of(data, to), slice, ncclFloat32, to, comm_, stream);
      nccl_.Recv(slice_of(scratch, from), slice, ncclFloat32, from, comm_, stream);
    }
    return nccl_.GroupEnd();
  });
  if (!status.ok()) return status;
  cuda::TreeParts parts;
  for (int other = 0; other < size; ++other) {
    parts.part[other] = other == rank ? slice_of(data, other) : slice_of(scratch, other);
  }
  float* own = slice_of(data, rank);
  cuda::TreeSum(stream, parts, size, static_cast<int64_t>(slice), own);
  return Call("all-gather of slices", options_.timeout,
              [&] { return nccl_.AllGather(own, data, slice, ncclFloat32, comm_, stream); });
}

absl::Status NcclGroup::Gather(cudaStream_t stream, const float* send, size_t count,
                               float* receive) {
  absl::Status status = Call("gather", options_.timeout, [&] {
    nccl_.GroupStart();
    if (options_.rank != 0) nccl_.Send(send, count, ncclFloat32, 0, comm_, stream);
    for (int rank = 1; options_.rank == 0 && rank < options_.size; ++rank) {
      nccl_.Recv(receive + static_cast<size_t>(rank) * count, count, ncclFloat32, rank, comm_,
                 stream);
    }
    return nccl_.GroupEnd();
  });
  if (status.ok() && options_.rank == 0 && receive != send) {
    const size_t bytes = count * sizeof(float);
    cuda::CopyRowsOnDevice(stream, receive, bytes, send, bytes, bytes, 1);
  }
  return status;
}

absl::Status NcclGroup::Broadcast(cudaStream_t stream, int32_t* ids, size_t count) {
  return Call("broadcast", options_.timeout,
              [&] { return nccl_.Broadcast(ids, ids, count, ncclInt32, 0, comm_, stream); });
}

}  // namespace marcoro
