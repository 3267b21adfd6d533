// A block takes a row. Which thread adds which squares depends on the row's length only: thread t
// takes elements [4 (t + 256 j), + 4) for j = 0, 1, …, one after the other, then the block adds up
// its threads' sums in a butterfly and its warps' in order.
//
// Each element is read once: rows of up to 8192 stay in registers between the sum and the scaling,
// with all loads of a thread, those of the weight included, under way before the first is used (at
// H = 4096: 48 KB of a block). A decode step has as many blocks as tokens, so that its time is one
// trip to memory, the reduction and one trip back.
//
// Where the row is quantized as well, that takes one reduction more of what is in registers, and
// saves a launch.
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/reduce.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/quantize_arithmetic.h"
#include "kernels/cuda/rms_norm_arithmetic.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStep = kThreads * kVector;  // elements of a block at a time
constexpr int kWarps = kThreads / kWarpThreads;

struct RmsNormRows {
  float* x;
  int64_t x_stride;
  const float* delta;  // null: nothing to add
  int64_t delta_stride;
  const float* weight;
  float epsilon;
  int columns;
  uint16_t* out;
  int64_t out_stride;
  bool aligned;    // all rows, of all matrices
  uint8_t* codes;  // null: rows are not quantized
  int64_t codes_stride;
  float* scales;
  int64_t scales_stride;
};

// The row that a block works on.
struct RmsNormRow {
  float* x;
  const float* delta;
  const float* weight;
  uint16_t* out;
  int columns;
  bool aligned;
};

MARCORO_DEVICE RmsNormRow RowOfBlock(const RmsNormRows& rows) {
  const int64_t row = BlockIndexX();
  return {rows.x + row * rows.x_stride,
          rows.delta == nullptr ? nullptr : rows.delta + row * rows.delta_stride,
          rows.weight,
          rows.out + row * rows.out_stride,
          rows.columns,
          rows.aligned};
}

// The factor of all elements, from each thread's part of the sum of squares.
MARCORO_DEVICE float ScaleOf(float sum, const RmsNormRows& rows) {
  return RmsNormFactor(sum, SharedArray<float>(0, kWarps), rows.columns, rows.epsilon);
}

MARCORO_DEVICE void StoreScaled(const RmsNormRow& row, int i, const Float4& x, float scale,
                                const Float4& weight) {
  StoreFourBf16(row.out + i, ScaleFour(x, scale, weight), row.columns - i, row.aligned);
}

// Quantizes the row that x becomes when it is scaled and rounded.
template <int kVectors>
MARCORO_DEVICE void QuantizeRow(const RmsNormRows& rows, Float4 (&x)[kVectors], float scale,
                                const Float4 (&weight)[kVectors]) {
  const int64_t row = BlockIndexX();
  const int first = ThreadIndex() * kVector;
  uint32_t largest = 0;
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kVectors; ++v) {
    const Float4 scaled = ScaleFour(x[v], scale, weight[v]);
    MARCORO_UNROLL_LOOP
    for (int e = 0; e < kVector; ++e) x[v].value[e] = Bf16ToFloat(RoundBf16(scaled.value[e]));
    largest = LargestMagnitude(largest, x[v], rows.columns - first - v * kStep);
  }
  const SharedArray<uint32_t> warps(kWarps * static_cast<int>(sizeof(float)), kWarps);
  const float code_scale = CodeScale(MaxOverBlock(largest, warps));
  if (ThreadIndex() == 0) rows.scales[row * rows.scales_stride] = code_scale;
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kStep;
    StoreFourCodes(rows.codes + row * rows.codes_stride + i, x[v], code_scale, rows.columns - i,
                   rows.aligned);
  }
}

// Rows of up to kVectors * kStep elements.
template <int kVectors, bool kQuantizes>
MARCORO_KERNEL(kThreads, 1)
RmsNormKernel(RmsNormRows rows) {
  LaunchDependents();
  const RmsNormRow row = RowOfBlock(rows);
  const int first = ThreadIndex() * kVector;
  Float4 x[kVectors];
  Float4 weight[kVectors];
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kStep;
    weight[v] = LoadFour(row.weight + i, row.columns - i, row.aligned);
  }
  WaitForKernelAhead();  // no kernel writes norms
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + v * kStep;
    x[v] = LoadFour(row.x + i, row.columns - i, row.aligned);
  }
  if (row.delta != nullptr) {
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectors; ++v) {
      const int i = first + v * kStep;
      x[v] = AddFour(x[v], LoadFour(row.delta + i, row.columns - i, row.aligned));
    }
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectors; ++v) {
      const int i = first + v * kStep;
      StoreFour(row.x + i, x[v], row.columns - i, row.aligned);
    }
  }
  float sum = 0;
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kVectors; ++v) sum = AddSquares(x[v], sum);
  const float scale = ScaleOf(sum, rows);
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kVectors; ++v) StoreScaled(row, first + v * kStep, x[v], scale, weight[v]);
  if constexpr (kQuantizes) QuantizeRow(rows, x, scale, weight);
}

// Longer rows are read twice; each thread reads again what it wrote itself.
MARCORO_KERNEL(kThreads, 1) RmsNormLongKernel(RmsNormRows rows) {
  LaunchDependents();
  WaitForKernelAhead();
  const RmsNormRow row = RowOfBlock(rows);
  float sum = 0;
  for (int i = ThreadIndex() * kVector; i < row.columns; i += kStep) {
    Float4 x = LoadFour(row.x + i, row.columns - i, row.aligned);
    if (row.delta != nullptr) {
      x = AddFour(x, LoadFour(row.delta + i, row.columns - i, row.aligned));
      StoreFour(row.x + i, x, row.columns - i, row.aligned);
    }
    sum = AddSquares(x, sum);
  }
  const float scale = ScaleOf(sum, rows);
  for (int i = ThreadIndex() * kVector; i < row.columns; i += kStep) {
    StoreScaled(row, i, LoadFour(row.x + i, row.columns - i, row.aligned), scale,
                LoadFour(row.weight + i, row.columns - i, row.aligned));
  }
}

}  // namespace

void RmsNorm(Stream stream, const Tensor& x, const Tensor* delta, const float* weight,
             float epsilon, const Tensor& out, const QuantizedActivations* quantized) {
  const RmsNormRows rows = {
      .x = x.Row<float>(0),
      .x_stride = x.stride,
      .delta = delta == nullptr ? nullptr : delta->Row<float>(0),
      .delta_stride = delta == nullptr ? 0 : delta->stride,
      .weight = weight,
      .epsilon = epsilon,
      .columns = static_cast<int>(x.columns),
      .out = out.Row<uint16_t>(0),
      .out_stride = out.stride,
      .aligned = RowsAreAligned(x.data, x.stride, sizeof(float)) &&
                 (delta == nullptr || RowsAreAligned(delta->data, delta->stride, sizeof(float))) &&
                 RowsAreAligned(weight, 0, sizeof(float)) &&
                 RowsAreAligned(out.data, out.stride, sizeof(uint16_t)) &&
                 (quantized == nullptr ||
                  RowsAreAligned(quantized->codes.data, quantized->codes.stride, 1)),
      .codes = quantized == nullptr ? nullptr : quantized->codes.Row<uint8_t>(0),
      .codes_stride = quantized == nullptr ? 0 : quantized->codes.stride,
      .scales = quantized == nullptr ? nullptr : quantized->scales.Row<float>(0),
      .scales_stride = quantized == nullptr ? 0 : quantized->scales.stride};
  const LaunchShape shape = {.grid_x = static_cast<int>(x.rows),
                             .threads = kThreads,
                             .shared_bytes = 2 * kWarps * static_cast<int>(sizeof(float)),
                             .overlaps_kernel_ahead = true};
  const bool fits = x.columns <= 8 * kStep;
  const bool short_rows = x.columns <= 4 * kStep;
  if (fits && quantized != nullptr) {
    return Launch(stream, shape, short_rows ? RmsNormKernel<4, true> : RmsNormKernel<8, true>,
                  rows);
  }
  if (fits) {
    return Launch(stream, shape, short_rows ? RmsNormKernel<4, false> : RmsNormKernel<8, false>,
                  rows);
  }
  Launch(stream, shape, RmsNormLongKernel, rows);
  if (quantized != nullptr) QuantizeActivations(stream, out, *quantized);
}

}  // namespace marcoro::cuda
