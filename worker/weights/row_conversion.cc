#include "worker/weights/row_conversion.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/weights/quantize.h"

namespace marcoro {
namespace {

// Elements of stored rows that a thread holds as float32. Rows longer than this are still handled
// whole.
constexpr int64_t kReadElements = 64 * 1024;

// Whether a code stands for NaN. No branches, so that it is vectorised.
bool HasNaN(const uint8_t* codes, int64_t count) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) found |= (codes[i] & 0x7f) == 0x7f;
  return found;
}

// One stored row, whole, into the destination's type and columns. False if a number is not finite.
bool ConvertRow(const LoadJob& job, const float* numbers, int64_t stored_columns, float* scale,
                char* out) {
  const float* kept = numbers + job.first_column;
  switch (job.dtype()) {
    case DType::kF8E4M3: {
      if (!RowScale(numbers, stored_columns, scale)) return false;
      QuantizeRow(kept, job.columns(), *scale, reinterpret_cast<uint8_t*>(out));
      return true;
    }
    case DType::kBF16:
      return RoundToBFloat16(kept, job.columns(), reinterpret_cast<BFloat16*>(out));
    default:
      MARCORO_CHECK(job.dtype() == DType::kF32);
      std::memcpy(out, kept, static_cast<size_t>(job.columns()) * sizeof(float));
      return AllFinite(kept, job.columns());
  }
}

// Rows that are stored as codes: they and their scales go on as they are.
absl::Status ConvertCodes(TensorSource& source, const LoadJob& job, const RowRange& range,
                          float* scales, uint8_t* out, std::vector<uint8_t>& buffer) {
  const int64_t stored_columns = range.tensor->columns();
  const int64_t step = std::max<int64_t>(1, kReadElements / stored_columns);
  buffer.resize(static_cast<size_t>(step * stored_columns));
  for (int64_t done = 0; done < range.rows; done += step) {
    const int64_t count = std::min(step, range.rows - done);
    const int64_t stored_row = range.first_row + done;
    absl::Status status =
        source.ReadCodes(*range.tensor, stored_row, count, buffer.data(), scales + done);
    if (!status.ok()) return status;
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* kept = buffer.data() + i * stored_columns + job.first_column;
      if (HasNaN(kept, job.columns())) return NotFiniteError(*range.tensor, stored_row + i);
      std::memcpy(out + (done + i) * job.columns(), kept, static_cast<size_t>(job.columns()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ConvertRows(TensorSource& source, const LoadJob& job, const RowRange& range,
                         float* scales, char* out, ConversionBuffers& buffers) {
  if (job.dtype() == DType::kF8E4M3 && source.FormOf(*range.tensor) == Fp8Form::kStored) {
    return ConvertCodes(source, job, range, scales, reinterpret_cast<uint8_t*>(out), buffers.codes);
  }
  std::vector<float>& buffer = buffers.rows;
  const int64_t stored_columns = range.tensor->columns();
  const int64_t step = std::max<int64_t>(1, kReadElements / stored_columns);
  const size_t row_bytes = static_cast<size_t>(job.columns()) * SizeOf(job.dtype());
  buffer.resize(static_cast<size_t>(step * stored_columns));
  for (int64_t done = 0; done < range.rows; done += step) {
    const int64_t count = std::min(step, range.rows - done);
    const int64_t stored_row = range.first_row + done;
    absl::Status status = source.ReadRows(*range.tensor, stored_row, count, buffer.data());
    if (!status.ok()) return status;
    for (int64_t i = 0; i < count; ++i) {
      const float* numbers = buffer.data() + i * stored_columns;
      char* out_row = out + static_cast<size_t>(done + i) * row_bytes;
      if (!ConvertRow(job, numbers, stored_columns, scales + done + i, out_row)) {
        return NotFiniteError(*range.tensor, stored_row + i);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status NotFiniteError(const TensorInfo& tensor, int64_t row) {
  return absl::InvalidArgumentError(
      absl::StrCat(tensor.origin, ": tensor ", tensor.name, ": row ", row,
                   " holds a number that is not finite (NaN, infinite or too large)"));
}

}  // namespace marcoro
