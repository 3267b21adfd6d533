// The ranks of a group on one GPU, each a stream: what a one-shot sum costs but for the links
// between GPUs, which are the GPU's own memory here.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/launch.h"

namespace marcoro::cuda {

class OneGpuRanks {
 public:
  // Rank 0 works on `first`, which outlives it. Room for sums of (rows, hidden) F32.
  static absl::StatusOr<std::unique_ptr<OneGpuRanks>> Create(Stream first, int ranks, int64_t rows,
                                                             int64_t hidden);
  ~OneGpuRanks();
  OneGpuRanks(const OneGpuRanks&) = delete;
  OneGpuRanks& operator=(const OneGpuRanks&) = delete;

  // Queues it for each rank (kernels/cuda/all_reduce.h). Sums of zeros: the time is the same.
  void AllReduceAddRmsNorm(int64_t rows, const float* weight) const;

 private:
  struct Rank {
    Stream stream = {};
    PeerMemory peers;
    Buffer exchange;
    Buffer residual;
    Buffer delta;
    Buffer out;
  };

  explicit OneGpuRanks(int64_t hidden) : hidden_(hidden) {}
  absl::Status Allocate(Stream first, int ranks, int64_t rows);
  void Queue(const Rank& rank, int64_t rows, const float* weight) const;

  const int64_t hidden_;
  uint32_t* failure_ = nullptr;  // of any rank
  std::vector<Stream> streams_;  // of ranks other than 0
  std::vector<Rank> ranks_;
};

}  // namespace marcoro::cuda
