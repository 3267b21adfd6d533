// A thread makes four neighbouring elements of one row: two loads of 16 bytes, one store of 8.
// Bound by memory (10 bytes an element): with 2048 threads on a multiprocessor 64 KB are under way,
// and the 30 or so instructions of an element take less time than its bytes.
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockColumns = kThreads * kVector;

struct SwiGluRows {
  const float* gate_up;
  int64_t gate_up_stride;
  bool gate_up_aligned;  // both halves of every row
  uint16_t* out;
  int64_t out_stride;
  bool out_aligned;
  int columns;
};

// gate / (1 + exp(-gate)) * up. Where the exponential overflows, the quotient is 0.
MARCORO_DEVICE float SiluTimes(float gate, float up) {
  constexpr float kLog2E = 1.44269504f;
  const float denominator = Add(1.0f, Exp2(Multiply(gate, -kLog2E)));
  return Multiply(Divide(gate, denominator), up);
}

MARCORO_KERNEL(kThreads, 1) SwiGluKernel(SwiGluRows rows) {
  LaunchDependents();
  WaitForKernelAhead();
  const int64_t row = BlockIndexX();
  const int i = BlockIndexY() * kBlockColumns + ThreadIndex() * kVector;
  const int left = rows.columns - i;
  if (left <= 0) return;
  const float* from = rows.gate_up + row * rows.gate_up_stride + i;
  const Float4 gate = LoadFour(from, left, rows.gate_up_aligned);
  const Float4 up = LoadFour(from + rows.columns, left, rows.gate_up_aligned);
  Float4 result;
  MARCORO_UNROLL_LOOP
  for (int e = 0; e < kVector; ++e) result.value[e] = SiluTimes(gate.value[e], up.value[e]);
  StoreFourBf16(rows.out + row * rows.out_stride + i, result, left, rows.out_aligned);
}

}  // namespace

void SwiGlu(Stream stream, const Tensor& gate_up, const Tensor& out) {
  const auto columns = static_cast<int>(out.columns);
  const SwiGluRows rows = {
      .gate_up = gate_up.Row<float>(0),
      .gate_up_stride = gate_up.stride,
      .gate_up_aligned =
          RowsAreAligned(gate_up.data, gate_up.stride, sizeof(float)) && columns % kVector == 0,
      .out = out.Row<uint16_t>(0),
      .out_stride = out.stride,
      .out_aligned = RowsAreAligned(out.data, out.stride, sizeof(uint16_t)),
      .columns = columns};
  Launch(stream,
         {.grid_x = static_cast<int>(out.rows),
          .grid_y = (columns + kBlockColumns - 1) / kBlockColumns,
          .threads = kThreads,
          .overlaps_kernel_ahead = true},
         SwiGluKernel, rows);
}

}  // namespace marcoro::cuda
