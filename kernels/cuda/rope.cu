// A thread takes eight elements of one head of one row: four from the first half of the head and
// the four of the second half that they are paired with (values, which are not rotated, likewise).
// Neighbouring lanes read neighbouring 16 bytes and write neighbouring 8. Products are rounded
// before they are added, as in every other backend.
//
// A row of 48 heads of 128 is 768 threads in 6 blocks, so that one token is one trip to memory, and
// a prompt is bound by its bytes: 24 KB read and 12 KB written a row, with two loads of 16 bytes
// under way in each of 2048 threads of a multiprocessor.
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 128;

struct RopeRows {
  const float* qkv;
  int64_t qkv_stride;
  const float* rope;
  int64_t rope_stride;
  uint16_t* q;
  int64_t q_stride;
  uint16_t* cache;
  const int32_t* positions;
  const int32_t* row_sequences;
  const int32_t* first_blocks;
  const int32_t* blocks;
  int heads;
  int kv_heads;
  int head_dim;
  int head_threads;  // threads of a head
  bool aligned;      // all rows, and both halves of each head
};

struct HeadPart {
  Float4 first;
  Float4 second;
};

MARCORO_DEVICE HeadPart Rotate(const HeadPart& in, const Float4& cosine, const Float4& sine) {
  HeadPart out;
  MARCORO_UNROLL_LOOP
  for (int e = 0; e < kVector; ++e) {
    const float a = in.first.value[e];
    const float b = in.second.value[e];
    out.first.value[e] = Subtract(Multiply(a, cosine.value[e]), Multiply(b, sine.value[e]));
    out.second.value[e] = Add(Multiply(b, cosine.value[e]), Multiply(a, sine.value[e]));
  }
  return out;
}

// Where the result of a head of a row goes.
MARCORO_DEVICE uint16_t* Destination(const RopeRows& rows, int64_t row, int position, int head) {
  if (head < rows.heads) return rows.q + row * rows.q_stride + int64_t{head} * rows.head_dim;
  const bool is_value = head >= rows.heads + rows.kv_heads;
  const int kv_head = head - rows.heads - (is_value ? rows.kv_heads : 0);
  const int first_block = rows.first_blocks[rows.row_sequences[row]];
  const int64_t block = rows.blocks[first_block + position / kBlockTokens];
  return rows.cache + block * BlockElements(rows.kv_heads, rows.head_dim) +
         kv_head * HeadElements(rows.head_dim) + (is_value ? KeyElements(rows.head_dim) : 0) +
         int64_t{position % kBlockTokens} * rows.head_dim;
}

MARCORO_KERNEL(kThreads, 1) RopeKernel(RopeRows rows) {
  LaunchDependents();
  WaitForKernelAhead();
  const int64_t row = BlockIndexX();
  const int thread = BlockIndexY() * kThreads + ThreadIndex();
  const int head = thread / rows.head_threads;
  const int position = rows.positions[row];
  if (head >= rows.heads + 2 * rows.kv_heads || position < 0) return;
  const int half = rows.head_dim / 2;
  const int i = thread % rows.head_threads * kVector;
  const int left = half - i;

  const float* from = rows.qkv + row * rows.qkv_stride + int64_t{head} * rows.head_dim + i;
  HeadPart part = {LoadFour(from, left, rows.aligned), LoadFour(from + half, left, rows.aligned)};
  if (head < rows.heads + rows.kv_heads) {
    const float* table = rows.rope + position * rows.rope_stride + i;
    part = Rotate(part, LoadFour(table, left, rows.aligned),
                  LoadFour(table + half, left, rows.aligned));
  }
  uint16_t* to = Destination(rows, row, position, head) + i;
  StoreFourBf16(to, part.first, left, rows.aligned);
  StoreFourBf16(to + half, part.second, left, rows.aligned);
}

}  // namespace

void RopeAndStoreKv(Stream stream, const Tensor& qkv, const Tensor& rope,
                    const AttentionShape& shape, const DeviceStep& step, const KvCacheLayer& cache,
                    const Tensor& q) {
  const int half = shape.head_dim / 2;
  const int head_threads = (half + kVector - 1) / kVector;
  const int threads = (shape.heads + 2 * shape.kv_heads) * head_threads;
  const RopeRows rows = {.qkv = qkv.Row<float>(0),
                         .qkv_stride = qkv.stride,
                         .rope = rope.Row<float>(0),
                         .rope_stride = rope.stride,
                         .q = q.Row<uint16_t>(0),
                         .q_stride = q.stride,
                         .cache = static_cast<uint16_t*>(cache.data),
                         .positions = step.positions,
                         .row_sequences = step.row_sequences,
                         .first_blocks = step.first_blocks,
                         .blocks = step.blocks,
                         .heads = shape.heads,
                         .kv_heads = shape.kv_heads,
                         .head_dim = shape.head_dim,
                         .head_threads = head_threads,
                         .aligned = half % kVector == 0 &&
                                    RowsAreAligned(qkv.data, qkv.stride, sizeof(float)) &&
                                    RowsAreAligned(rope.data, rope.stride, sizeof(float)) &&
                                    RowsAreAligned(q.data, q.stride, sizeof(uint16_t)) &&
                                    RowsAreAligned(cache.data, 0, sizeof(uint16_t))};
  Launch(stream,
         {.grid_x = step.rows,
          .grid_y = (threads + kThreads - 1) / kThreads,
          .threads = kThreads,
          .overlaps_kernel_ahead = true},
         RopeKernel, rows);
}

}  // namespace marcoro::cuda
