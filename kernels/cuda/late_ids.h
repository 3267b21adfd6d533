// Ids of a step that only the device knows: tokens that slots of its sampler chose in the step
// before.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling.h"
#include "kernels/token_sampler.h"

namespace marcoro::cuda {

// Of each entry (device memory), ids[row] becomes the token that sequences[slot] chose last. Of a
// sequence that has chosen none it becomes 0: whatever follows means nothing.
void WriteLateIds(Stream stream, const LateId* late, int count, const SampledSequence* sequences,
                  int32_t* ids);

// Carries the entries of one step to the device.
class LateIds {
 public:
  // For up to `most` entries of sequences in device memory, which outlive the object.
  static absl::StatusOr<std::unique_ptr<LateIds>> Create(Stream stream, size_t most,
                                                         const SampledSequence* sequences);
  ~LateIds() { DestroyEvent(copied_); }
  LateIds(const LateIds&) = delete;
  LateIds& operator=(const LateIds&) = delete;

  // For the next Write.
  void Supply(absl::Span<const LateId> late) { late_.assign(late.begin(), late.end()); }
  // Queues what was supplied: ids (rows) are in device memory.
  absl::Status Write(Stream stream, int32_t* ids, int rows);

 private:
  LateIds(Event copied, const SampledSequence* sequences)
      : copied_(copied), sequences_(sequences) {}

  const Event copied_;  // what was staged
  const SampledSequence* const sequences_;
  std::vector<LateId> late_;
  GrowingMemory pinned_{MemoryKind::kPinned};
  GrowingMemory device_{MemoryKind::kDevice};
};

}  // namespace marcoro::cuda
