// A block takes 1024 columns of one row. Rows of the table lie far apart, so that a step of few
// tokens is a trip to memory and back; a long prompt is bound by what it writes, four bytes an
// element, whole lines at a time.
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockColumns = kThreads * kVector;

struct EmbedRows {
  const int32_t* ids;
  const void* table;
  int64_t table_stride;
  bool table_aligned;
  float* out;
  int64_t out_stride;
  bool out_aligned;
  int columns;
};

MARCORO_DEVICE Float4 LoadElements(const float* from, int left, bool aligned) {
  return LoadFour(from, left, aligned);
}
MARCORO_DEVICE Float4 LoadElements(const uint16_t* from, int left, bool aligned) {
  return LoadFourBf16(from, left, aligned);
}

template <typename Element>
MARCORO_KERNEL(kThreads, 1)
EmbedKernel(EmbedRows rows) {
  const int64_t row = BlockIndexX();
  const int i = BlockIndexY() * kBlockColumns + ThreadIndex() * kVector;
  const int left = rows.columns - i;
  if (left <= 0) return;
  const auto* from =
      static_cast<const Element*>(rows.table) + rows.ids[row] * rows.table_stride + i;
  StoreFour(rows.out + row * rows.out_stride + i, LoadElements(from, left, rows.table_aligned),
            left, rows.out_aligned);
}

}  // namespace

void Embed(Stream stream, const DeviceStep& step, const Tensor& table, const Tensor& out) {
  const auto columns = static_cast<int>(out.columns);
  const EmbedRows rows = {
      .ids = step.ids,
      .table = table.data,
      .table_stride = table.stride,
      .table_aligned = RowsAreAligned(table.data, table.stride, SizeOf(table.dtype)),
      .out = out.Row<float>(0),
      .out_stride = out.stride,
      .out_aligned = RowsAreAligned(out.data, out.stride, sizeof(float)),
      .columns = columns};
  const LaunchShape shape = {.grid_x = static_cast<int>(out.rows),
                             .grid_y = (columns + kBlockColumns - 1) / kBlockColumns,
                             .threads = kThreads};
  if (table.dtype == DType::kBF16) return Launch(stream, shape, EmbedKernel<uint16_t>, rows);
  Launch(stream, shape, EmbedKernel<float>, rows);
}

}  // namespace marcoro::cuda
