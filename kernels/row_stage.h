// The way from a tensor's stored rows into a backend's memory, for backends that convert them
// faster than the host does: rows are read into memory of a stage, and the backend does the rest
// beside the program.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace marcoro {

// Rows (count, columns), dense, at the beginning of a stage's memory. Of each, what it is packed
// into holds the columns from first_column on.
struct StagedRows {
  DType dtype = DType::kBF16;  // kBF16, kF16, kF32; or kF8E4M3, the codes that an E4M3 weight holds
  int64_t count = 0;
  int64_t columns = 0;
  int64_t first_column = 0;
  const float* scales = nullptr;  // (count), of kF8E4M3 only; within the stage's memory, too
};

// What one of several threads works with at a time. Pack and Copy queue and return; a stage works
// on one piece at a time, several stages at once.
class RowStage {
 public:
  virtual ~RowStage() = default;

  // Memory of the program, aligned to 64 bytes, as large as the stage was asked for. Not to be
  // written between Pack or Copy and the end of the Wait behind it.
  virtual void* memory() const = 0;

  // Rows [first_row, first_row + rows.count) of the weight, with their scales. As
  // Backend::PackWeight has it, first_row is a multiple of 64, and the count is too, except for the
  // last rows. Into an E4M3 weight numbers are quantized: scale = max|row| / 448 over all its
  // columns in float32 (1 for zeros, never 0), code = E4M3FN(number / scale), a float32 division
  // rounded to nearest even, then rounding to nearest even. Into a BF16 weight they are rounded to
  // nearest even. INTERNAL if it cannot be queued: the device is lost.
  virtual absl::Status Pack(const StagedRows& rows, const PackedWeight& weight,
                            int64_t first_row) = 0;
  // The rows of a BF16 matrix, numbers rounded to nearest even. Errors as of Pack.
  virtual absl::Status Copy(const StagedRows& rows, const Tensor& matrix) = 0;

  // Waits until what was queued has happened. False if one of the numbers was not finite or, for
  // BF16, would not be after rounding; then its row is unspecified. INTERNAL if something failed:
  // the device is lost.
  virtual absl::StatusOr<bool> Wait() = 0;
};

}  // namespace marcoro
