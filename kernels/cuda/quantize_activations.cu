// A block takes a segment of a row: its threads find the largest magnitude, which no order changes,
// then round. A segment is read twice, the second time from the first-level cache: 28 KB at most in
// a 7B model.
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/quantize_arithmetic.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStep = kThreads * kVector;  // elements of a block at a time
constexpr int kWarps = kThreads / kWarpThreads;

struct QuantizeWork {
  const uint16_t* x;
  int64_t x_stride;
  uint8_t* codes;
  int64_t codes_stride;
  float* scales;
  int64_t scales_stride;
  int columns;  // of a segment
  bool aligned;
};

MARCORO_KERNEL(kThreads, 4) QuantizeKernel(QuantizeWork work) {
  LaunchDependents();
  WaitForKernelAhead();
  const int64_t token = BlockIndexX();
  const int segment = BlockIndexY();
  const int64_t first = static_cast<int64_t>(segment) * work.columns;
  const uint16_t* x = work.x + token * work.x_stride + first;
  uint8_t* codes = work.codes + token * work.codes_stride + first;
  uint32_t largest = 0;
  for (int i = ThreadIndex() * kVector; i < work.columns; i += kStep) {
    const int left = work.columns - i;
    largest = LargestMagnitude(largest, LoadFourBf16(x + i, left, work.aligned), left);
  }
  const float scale = CodeScale(MaxOverBlock(largest, SharedArray<uint32_t>(0, kWarps)));
  if (ThreadIndex() == 0) work.scales[token * work.scales_stride + segment] = scale;
  for (int i = ThreadIndex() * kVector; i < work.columns; i += kStep) {
    const int left = work.columns - i;
    StoreFourCodes(codes + i, LoadFourBf16(x + i, left, work.aligned), scale, left, work.aligned);
  }
}

}  // namespace

void QuantizeActivations(Stream stream, const Tensor& x, const QuantizedActivations& out) {
  const int64_t segments = out.scales.columns;
  const int64_t columns = x.columns / segments;
  const QuantizeWork work = {.x = x.Row<const uint16_t>(0),
                             .x_stride = x.stride,
                             .codes = out.codes.Row<uint8_t>(0),
                             .codes_stride = out.codes.stride,
                             .scales = out.scales.Row<float>(0),
                             .scales_stride = out.scales.stride,
                             .columns = static_cast<int>(columns),
                             .aligned = RowsAreAligned(x.data, x.stride, sizeof(uint16_t)) &&
                                        RowsAreAligned(out.codes.data, out.codes.stride, 1) &&
                                        columns % kVector == 0};
  const LaunchShape shape = {.grid_x = static_cast<int>(x.rows),
                             .grid_y = static_cast<int>(segments),
                             .threads = kThreads,
                             .shared_bytes = kWarps * static_cast<int>(sizeof(uint32_t)),
                             .overlaps_kernel_ahead = true};
  Launch(stream, shape, QuantizeKernel, work);
}

}  // namespace marcoro::cuda
