// Stages of the backend "cuda": pinned memory, a stream of its own, and device memory in which rows
// are converted. Copies of one stage run beside the kernels of others.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/row_stage.h"

namespace marcoro::cuda {

// Takes twice the bytes of device memory. E4M3 weights are packed for `activations` (ops.h,
// PackWeight). The device has been found to work (runtime.h, UseDevice).
absl::StatusOr<std::unique_ptr<RowStage>> MakeRowStage(int device, size_t bytes, DType activations);

}  // namespace marcoro::cuda
