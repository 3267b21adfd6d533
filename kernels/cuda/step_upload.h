// Carries what a step's ops need to know of its rows and sequences to the device, in one copy from
// pinned memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {

// What launches are sized by beyond what a step needs, so that they can be repeated for others.
struct StepRoom {
  int sequences = 0;
  int context = 0;
};

class StepUpload {
 public:
  StepUpload() = default;
  ~StepUpload();
  // Bytes for any step within the limits, and room for them.
  static size_t Bytes(const StepLimits& limits);
  absl::Status Reserve(Stream stream, const StepLimits& limits);

  // Queues the copy. Rows that belong to no sequence are padding. The step must be one that
  // Backend's ops would take. What the ops are told depends on the numbers of ids and logit rows
  // and on the room alone if that is enough for the step, and the memory has not moved.
  absl::Status Begin(Stream stream, const StepInput& input, const StepRoom& room = {});
  // All that was queued on the stream has happened: the pinned memory is free again.
  void NoteSynchronized() { copying_ = false; }

  // Its ids, in device memory: may be changed by what is queued before its ops.
  int32_t* ids() const { return static_cast<int32_t*>(device_.data()); }
  // Of the step that began last.
  const DeviceStep& step() const { return step_; }
  const int32_t* logit_rows() const { return logit_rows_; }
  // Where all of it lies on the device.
  const void* memory() const { return device_.data(); }

 private:
  // Numbers (int32) that a step takes.
  static size_t Count(size_t rows, size_t sequences, size_t logit_rows, size_t blocks);
  absl::Status ReserveCount(Stream stream, size_t count);

  GrowingMemory pinned_{MemoryKind::kPinned};
  GrowingMemory device_{MemoryKind::kDevice};
  bool copying_ = false;  // the pinned memory may still be read
  std::optional<Event> copied_;
  DeviceStep step_;
  const int32_t* logit_rows_ = nullptr;
};

}  // namespace marcoro::cuda
