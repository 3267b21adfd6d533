// A thread copies eight neighbouring elements of one row, in one access where memory is aligned for
// that.
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kElements = 8;
constexpr int kBlockColumns = kThreads * kElements;

struct GatheredRows {
  const int32_t* rows;
  const uint16_t* from;
  int64_t from_stride;
  uint16_t* to;
  int64_t to_stride;
  int columns;
  bool aligned;
};

MARCORO_KERNEL(kThreads, 1) GatherRowsKernel(GatheredRows gathered) {
  LaunchDependents();
  WaitForKernelAhead();
  const int64_t row = BlockIndexX();
  const int i = BlockIndexY() * kBlockColumns + ThreadIndex() * kElements;
  const int left = gathered.columns - i;
  const uint16_t* from = gathered.from + gathered.rows[row] * gathered.from_stride + i;
  uint16_t* to = gathered.to + row * gathered.to_stride + i;
  if (gathered.aligned && left >= kElements) {
    *reinterpret_cast<Words4*>(to) = *reinterpret_cast<const Words4*>(from);
    return;
  }
  for (int e = 0; e < kElements && e < left; ++e) to[e] = from[e];
}

bool IsAligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data) % sizeof(Words4) == 0 &&
         tensor.stride % kElements == 0;
}

}  // namespace

void GatherRows(Stream stream, const Tensor& from, const int32_t* rows, const Tensor& to) {
  const auto columns = static_cast<int>(to.columns);
  Launch(stream,
         {.grid_x = static_cast<int>(to.rows),
          .grid_y = (columns + kBlockColumns - 1) / kBlockColumns,
          .threads = kThreads,
          .overlaps_kernel_ahead = true},
         GatherRowsKernel,
         GatheredRows{.rows = rows,
                      .from = from.Row<uint16_t>(0),
                      .from_stride = from.stride,
                      .to = to.Row<uint16_t>(0),
                      .to_stride = to.stride,
                      .columns = columns,
                      .aligned = IsAligned(from) && IsAligned(to)});
}

}  // namespace marcoro::cuda
