// The bench on a GPU: the same measurements, with times that the device takes itself.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kernels/bench/measurement.h"

namespace marcoro {

// One JSON object: name, compute capability, multiprocessors, memory and versions of the GPU.
// FAILED_PRECONDITION, in one line that says what to do, where none can be worked with or the
// program was built without CUDA.
absl::StatusOr<std::string> DescribeGpu();

// Measures the ops whose "op shape" contains `filter`; a few runs of few shapes if `quick`.
absl::StatusOr<BenchReport> RunGpuBench(const std::string& filter, bool quick);

}  // namespace marcoro
