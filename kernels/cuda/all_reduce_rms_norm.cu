// A block takes a row (of up to slot_elements), passes its part on, and while that is under way
// loads the residual and the weight. What comes back is added, normed and rounded in registers: two
// launches and three trips to memory of the row less than one after the other.
//
// The sums of squares are added as rms_norm.cu adds them (rms_norm_arithmetic.h). Longer rows, and
// those of a group whose slots are shorter, take the two ops.
#include <algorithm>

#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/all_reduce_exchange.h"
#include "kernels/cuda/device/kernel_parameter.h"
#include "kernels/cuda/device/reduce.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rms_norm_arithmetic.h"

namespace marcoro::cuda {
namespace {

constexpr int kWarps = kExchangeThreads / kWarpThreads;

struct AllReduceRows {
  float* residual;
  int64_t residual_stride;
  const float* delta;
  const float* weight;
  float epsilon;
  int rows;
  int columns;
  uint16_t* out;
  int64_t out_stride;
  bool aligned;
};

// The factor of all elements, from each thread's part of the sum of squares.
MARCORO_DEVICE float ScaleOfRow(float sum, const AllReduceRows& rows) {
  const SharedArray<float> warp_sums(kExchangeSharedBytes, kWarps);
  return RmsNormFactor(sum, warp_sums, rows.columns, rows.epsilon);
}

// Rows of up to kVectors * kExchangeStep elements.
template <int kRanks, int kVectors>
MARCORO_KERNEL(kExchangeThreads, 1)
AllReduceAddRmsNormKernel(MARCORO_CONSTANT_PARAMETER PeerMemory peers, AllReduceRows rows) {
  Exchanges exchanges(peers);
  const int columns = rows.columns;
  const int first = ThreadIndex() * kVector;
  for (int64_t row = BlockIndexX(); row < rows.rows; row += GridX()) {
    const float* delta = rows.delta + row * columns;
    float* residual = rows.residual + row * rows.residual_stride;
    Float4 own[kVectors];
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectors; ++v) {
      const int i = first + v * kExchangeStep;
      own[v] = LoadFour(delta + i, columns - i, rows.aligned);
    }
    if (exchanges.Begin()) WriteToPeers(exchanges, kRanks, first, columns, own);
    Float4 x[kVectors];
    Float4 weight[kVectors];
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectors; ++v) {
      const int i = first + v * kExchangeStep;
      x[v] = LoadFour(residual + i, columns - i, rows.aligned);
      weight[v] = LoadFour(rows.weight + i, columns - i, rows.aligned);
    }
    const bool complete = exchanges.Finish();

    float squares = 0;
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectors; ++v) {
      const int i = first + v * kExchangeStep;
      if (i >= columns) break;
      const Float4 sum =
          complete ? SumOfRanks<kRanks>(exchanges, peers.rank, i, own[v]) : FourNans();
      x[v] = AddFour(x[v], sum);  // beyond the row's end: zeros
      squares = AddSquares(x[v], squares);
      StoreFour(residual + i, x[v], columns - i, rows.aligned);
    }
    const float scale = ScaleOfRow(squares, rows);
    uint16_t* out = rows.out + row * rows.out_stride;
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectors; ++v) {
      const int i = first + v * kExchangeStep;
      if (i >= columns) break;
      StoreFourBf16(out + i, ScaleFour(x[v], scale, weight[v]), columns - i, rows.aligned);
    }
  }
  exchanges.Keep();
}

template <int kRanks>
void LaunchRows(Stream stream, const LaunchShape& shape, const PeerMemory& peers,
                const AllReduceRows& rows) {
  if (rows.columns <= 4 * kExchangeStep) {
    return Launch(stream, shape, AllReduceAddRmsNormKernel<kRanks, 4>, peers, rows);
  }
  Launch(stream, shape, AllReduceAddRmsNormKernel<kRanks, 8>, peers, rows);
}

constexpr int kMostColumns = 8 * kExchangeStep;

}  // namespace

void AllReduceAddRmsNorm(Stream stream, const PeerMemory& peers, const Tensor& residual,
                         const Tensor& delta, const float* weight, float epsilon,
                         const Tensor& out) {
  if (delta.rows == 0) return;
  if (delta.columns > std::min(kMostColumns, peers.slot_elements)) {
    AllReduceTree(stream, peers, delta.Row<float>(0), delta.rows * delta.columns);
    return RmsNorm(stream, residual, &delta, weight, epsilon, out);
  }
  const AllReduceRows rows = {
      .residual = residual.Row<float>(0),
      .residual_stride = residual.stride,
      .delta = delta.Row<float>(0),
      .weight = weight,
      .epsilon = epsilon,
      .rows = static_cast<int>(delta.rows),
      .columns = static_cast<int>(delta.columns),
      .out = out.Row<uint16_t>(0),
      .out_stride = out.stride,
      .aligned = RowsAreAligned(residual.data, residual.stride, sizeof(float)) &&
                 RowsAreAligned(delta.data, delta.stride, sizeof(float)) &&
                 RowsAreAligned(weight, 0, sizeof(float)) &&
                 RowsAreAligned(out.data, out.stride, sizeof(uint16_t))};
  const LaunchShape shape = {
      .grid_x = std::min(rows.rows, peers.most_blocks),
      .threads = kExchangeThreads,
      .shared_bytes = kExchangeSharedBytes + kWarps * static_cast<int>(sizeof(float))};
  if (peers.ranks == 2) return LaunchRows<2>(stream, shape, peers, rows);
  if (peers.ranks == 4) return LaunchRows<4>(stream, shape, peers, rows);
  LaunchRows<8>(stream, shape, peers, rows);
}

}  // namespace marcoro::cuda
