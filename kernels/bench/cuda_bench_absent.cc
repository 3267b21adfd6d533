// In place of cuda_bench.cc in a build without CUDA.
#include "absl/status/status.h"
#include "kernels/bench/cuda_bench.h"

namespace marcoro {
namespace {

absl::Status Absent() {
  return absl::FailedPreconditionError(
      "backend 'cuda': this program was built without it; build with cmake --preset cuda");
}

}  // namespace

absl::StatusOr<std::string> DescribeGpu() { return Absent(); }

absl::StatusOr<BenchReport> RunGpuBench(const std::string&, bool) { return Absent(); }

}  // namespace marcoro
