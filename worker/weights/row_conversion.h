// Stored rows into rows of a destination, on the host.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "worker/weights/load_plan.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

// What one thread converts with; it keeps its memory from one call to the next.
struct ConversionBuffers {
  std::vector<float> rows;     // stored rows as float32
  std::vector<uint8_t> codes;  // or as they are
};

// Reads rows of one of the job's tensors and converts them into the job's type and columns, dense
// at `out`, with a scale for each if they are E4M3. INVALID_ARGUMENT, naming tensor and row, for a
// number that is not finite; errors of the source.
absl::Status ConvertRows(TensorSource& source, const LoadJob& job, const RowRange& range,
                         float* scales, char* out, ConversionBuffers& buffers);

// That error.
absl::Status NotFiniteError(const TensorInfo& tensor, int64_t row);

}  // namespace marcoro
