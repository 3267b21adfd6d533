#include "kernels/bench/one_gpu_ranks.h"

#include <functional>
#include <utility>

#include "kernels/cuda/runtime.h"

namespace marcoro::cuda {
namespace {

constexpr uint64_t kPatience = 10'000'000'000;  // nanoseconds
constexpr float kEpsilon = 1e-5f;

absl::Status AllocateZeros(size_t bytes, Buffer* buffer) {
  auto memory = AllocateDevice(bytes);
  if (!memory.ok()) return memory.status();
  *buffer = Buffer(*memory, bytes, [](void* data, size_t) { FreeDevice(data); });
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<OneGpuRanks>> OneGpuRanks::Create(Stream first, int ranks,
                                                                 int64_t rows, int64_t hidden) {
  std::unique_ptr<OneGpuRanks> group(new OneGpuRanks(hidden));
  if (absl::Status status = group->Allocate(first, ranks, rows); !status.ok()) return status;
  return group;
}

absl::Status OneGpuRanks::Allocate(Stream first, int ranks, int64_t rows) {
  auto failure = AllocatePinned(sizeof(*failure_));
  if (!failure.ok()) return failure.status();
  failure_ = static_cast<uint32_t*>(*failure);
  *failure_ = 0;
  ranks_.resize(static_cast<size_t>(ranks));
  const auto elements = static_cast<size_t>(rows * hidden_);
  for (int r = 0; r < ranks; ++r) {
    Rank& rank = ranks_[static_cast<size_t>(r)];
    rank.stream = first;
    if (r > 0) {
      auto stream = CreateStream();
      if (!stream.ok()) return stream.status();
      streams_.push_back(*stream);
      rank.stream = *stream;
    }
    rank.peers = {.rank = r,
                  .ranks = ranks,
                  .slot_elements = static_cast<int>(hidden_),
                  .patience = kPatience,
                  .failure = failure_};
    const std::pair<size_t, Buffer*> memories[] = {
        {PeerMemoryBytes(ranks, rank.peers.most_blocks, rank.peers.slot_elements), &rank.exchange},
        {elements * sizeof(float), &rank.residual},
        {elements * sizeof(float), &rank.delta},
        {elements * sizeof(uint16_t), &rank.out}};
    for (const auto& [bytes, buffer] : memories) {
      if (absl::Status status = AllocateZeros(bytes, buffer); !status.ok()) return status;
    }
  }
  for (Rank& rank : ranks_) {
    for (size_t peer = 0; peer < ranks_.size(); ++peer) {
      rank.peers.memory[peer] = static_cast<char*>(ranks_[peer].exchange.data());
    }
  }
  return absl::OkStatus();
}

OneGpuRanks::~OneGpuRanks() {
  for (const Rank& rank : ranks_) Synchronize(rank.stream).IgnoreError();
  for (const Stream stream : streams_) DestroyStream(stream);
  if (failure_ != nullptr) FreePinned(failure_);
}

void OneGpuRanks::Queue(const Rank& rank, int64_t rows, const float* weight) const {
  cuda::AllReduceAddRmsNorm(rank.stream, rank.peers,
                            Tensor(rank.residual.data(), DType::kF32, rows, hidden_),
                            Tensor(rank.delta.data(), DType::kF32, rows, hidden_), weight, kEpsilon,
                            Tensor(rank.out.data(), DType::kBF16, rows, hidden_));
}

void OneGpuRanks::AllReduceAddRmsNorm(int64_t rows, const float* weight) const {
#ifdef MARCORO_SIMT
  std::vector<std::function<void()>> devices;
  for (const Rank& rank : ranks_) {
    devices.push_back([this, &rank, rows, weight] { Queue(rank, rows, weight); });
  }
  simt::LaunchTogether(devices);
#else
  for (const Rank& rank : ranks_) Queue(rank, rows, weight);
#endif
}

}  // namespace marcoro::cuda
