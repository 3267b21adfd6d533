// The sampler of the CUDA backend: sequences in device memory, a step's tokens in pinned memory
// when they are taken. Nothing is allocated but when a sequence is opened, and then only if it has
// penalties or lists longer than its slot has seen before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/late_ids.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling.h"
#include "kernels/token_sampler.h"

namespace marcoro::cuda {

class DeviceSampler final : public TokenSampler {
 public:
  // Bytes of device memory, without what sequences bring: their lists, and 4 V for penalties.
  static size_t Bytes(const TokenSamplerLimits& limits);
  // Works on the stream, which outlives it. `failure` tells what has failed in ops that return no
  // status. The vocabulary has at most kMostTokensToSample tokens.
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Create(
      Stream stream, const TokenSamplerLimits& limits, std::function<absl::Status()> failure);
  ~DeviceSampler() override;

  absl::StatusOr<int32_t> Open(const TokenRules& rules, absl::Span<const int32_t> prompt,
                               absl::Span<const int32_t> generated) override;
  void Close(int32_t slot) override;
  void Queue(const Tensor& logits, absl::Span<const int32_t> slots) override;
  void SupplyIds(absl::Span<const LateId> late) override;
  absl::StatusOr<absl::Span<const TokenChoice>> Take() override;

  // For who begins steps. Gone when the sampler is.
  std::weak_ptr<LateIds> late_ids() const { return late_ids_; }

 private:
  struct Slot {
    // What the sequence's state points to: its lists, its tail, its counts.
    GrowingMemory lists{MemoryKind::kDevice};
    GrowingMemory staged_lists{MemoryKind::kPinned};
    Event opened = {};  // what was staged has been copied
    bool is_open = false;
  };
  struct Step {
    GrowingMemory slots{MemoryKind::kPinned};   // (R) int32
    GrowingMemory tokens{MemoryKind::kPinned};  // (R) SampledToken
    Event done = {};
    size_t rows = 0;
  };

  DeviceSampler(Stream stream, const TokenSamplerLimits& limits,
                std::function<absl::Status()> failure)
      : stream_(stream), limits_(limits), failure_(std::move(failure)), slots_(limits.slots) {}
  absl::Status MakeEvents();
  absl::Status Allocate();

  const Stream stream_;
  const TokenSamplerLimits limits_;
  const std::function<absl::Status()> failure_;
  std::vector<Slot> slots_;
  std::vector<int32_t> free_;
  std::vector<Event> events_;  // all of them, to be destroyed

  GrowingMemory states_{MemoryKind::kDevice};  // (slots) SampledSequence
  GrowingMemory staged_states_{MemoryKind::kPinned};
  GrowingMemory row_slots_{MemoryKind::kDevice};  // (R) int32
  GrowingMemory summaries_{MemoryKind::kDevice};  // (R) LogitSummary
  GrowingMemory tokens_{MemoryKind::kDevice};     // (R) SampledToken
  GrowingMemory scratch_{MemoryKind::kDevice};
  std::shared_ptr<LateIds> late_ids_;

  Step steps_[kMostQueued];
  uint64_t queued_ = 0;  // steps since the start
  uint64_t taken_ = 0;
  std::vector<TokenChoice> choices_;
};

}  // namespace marcoro::cuda
