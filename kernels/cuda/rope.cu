// A thread takes eight elements of one head of one row: four from the first half of the head and
// the four of the second half that they are paired with (values, which are not rotated, likewise).
// Neighbouring lanes read neighbouring 16 bytes and write neighbouring 8. Products are rounded
// before they are added, as in every other backend.
//
// A row of 48 heads of 128 is 768 threads in 6 blocks, so that one token is one trip to memory (the
// table, and what the step's arrays say, no kernel of the step writes: they are asked for while the
// kernel ahead still runs), and a prompt is bound by its bytes: 24 KB read and 12 KB written a row,
// with two loads of 16 bytes under way in each of 2048 threads of a multiprocessor.
//
// In FP8 the threads of a head are neighbouring lanes, a power of two of them, that find the head's
// largest element together; each writes four codes at a time.
#include "kernels/check.h"
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/e4m3.h"
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
  char* cache;
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

struct Rotation {
  Float4 cosine;
  Float4 sine;
};

MARCORO_DEVICE HeadPart Rotate(const HeadPart& in, const Rotation& by) {
  HeadPart out;
  MARCORO_UNROLL_LOOP
  for (int e = 0; e < kVector; ++e) {
    const float a = in.first.value[e];
    const float b = in.second.value[e];
    out.first.value[e] = Subtract(Multiply(a, by.cosine.value[e]), Multiply(b, by.sine.value[e]));
    out.second.value[e] = Add(Multiply(b, by.cosine.value[e]), Multiply(a, by.sine.value[e]));
  }
  return out;
}

MARCORO_DEVICE bool IsValue(const RopeRows& rows, int head) {
  return head >= rows.heads + rows.kv_heads;
}

// How a thread's elements, from the i-th of each half of a head on, are rotated, if they are.
MARCORO_DEVICE Rotation LoadRotation(const RopeRows& rows, int position, int head, int i) {
  if (IsValue(rows, head)) return {};
  const int half = rows.head_dim / 2;
  const float* table = rows.rope + position * rows.rope_stride + i;
  return {LoadFour(table, half - i, rows.aligned), LoadFour(table + half, half - i, rows.aligned)};
}

// Those elements, rotated where they are to be.
MARCORO_DEVICE HeadPart LoadPart(const RopeRows& rows, int64_t row, int head, int i,
                                 const Rotation& rotation) {
  const int half = rows.head_dim / 2;
  const int left = half - i;
  const float* from = rows.qkv + row * rows.qkv_stride + int64_t{head} * rows.head_dim + i;
  const HeadPart part = {LoadFour(from, left, rows.aligned),
                         LoadFour(from + half, left, rows.aligned)};
  return IsValue(rows, head) ? part : Rotate(part, rotation);
}

// Where the block of a position of the row's sequence holds a key's or value's KV head.
MARCORO_DEVICE char* HeadInBlock(const RopeRows& rows, int64_t row, int position, int head,
                                 KvFormat format) {
  const int kv_head = head - rows.heads - (IsValue(rows, head) ? rows.kv_heads : 0);
  const int first_block = rows.first_blocks[rows.row_sequences[row]];
  const int64_t block = rows.blocks[first_block + position / kBlockTokens];
  return rows.cache + block * BlockBytes(rows.kv_heads, rows.head_dim, format) +
         kv_head * HeadBytes(rows.head_dim, format);
}

// The first element of a key or value behind that.
MARCORO_DEVICE int64_t ElementInHead(const RopeRows& rows, int position, int head) {
  return (IsValue(rows, head) ? KeyElements(rows.head_dim) : 0) +
         int64_t{position % kBlockTokens} * rows.head_dim;
}

// Where the result of a head of a row goes in BF16.
MARCORO_DEVICE uint16_t* Destination(const RopeRows& rows, int64_t row, int position, int head) {
  if (head < rows.heads) return rows.q + row * rows.q_stride + int64_t{head} * rows.head_dim;
  char* const block_head = HeadInBlock(rows, row, position, head, KvFormat::kActivation);
  return reinterpret_cast<uint16_t*>(block_head) + ElementInHead(rows, position, head);
}

MARCORO_KERNEL(kThreads, 1) RopeKernel(RopeRows rows) {
  LaunchDependents();
  const int64_t row = BlockIndexX();
  const int thread = BlockIndexY() * kThreads + ThreadIndex();
  const int head = thread / rows.head_threads;
  const int position = rows.positions[row];
  if (head >= rows.heads + 2 * rows.kv_heads || position < 0) return WaitForKernelAhead();
  const int half = rows.head_dim / 2;
  const int i = thread % rows.head_threads * kVector;
  const int left = half - i;

  const Rotation rotation = LoadRotation(rows, position, head, i);
  uint16_t* to = Destination(rows, row, position, head) + i;
  WaitForKernelAhead();
  const HeadPart part = LoadPart(rows, row, head, i, rotation);
  StoreFourBf16(to, part.first, left, rows.aligned);
  StoreFourBf16(to + half, part.second, left, rows.aligned);
}

// The bits of the largest magnitude among the elements of a head, whose threads are neighbours.
MARCORO_DEVICE uint32_t LargestMagnitude(const RopeRows& rows, const HeadPart& part) {
  uint32_t largest = 0;
  const auto add = [&](uint32_t magnitude) { largest = magnitude > largest ? magnitude : largest; };
  MARCORO_UNROLL_LOOP
  for (int e = 0; e < kVector; ++e) {
    add(FloatToBits(part.first.value[e]) & 0x7fffffffu);
    add(FloatToBits(part.second.value[e]) & 0x7fffffffu);
  }
  MARCORO_UNROLL_LOOP
  for (int mask = 1; mask < kWarpThreads; mask *= 2) {
    const uint32_t other = ShuffleXor(largest, mask);
    if (mask < rows.head_threads) add(other);
  }
  return largest;
}

// NaN where an element is not finite: magnitudes compare like the integers of their bits.
MARCORO_DEVICE float ScaleOf(uint32_t largest) {
  constexpr uint32_t kInfinity = 0x7f800000u;
  if (largest >= kInfinity) return BitsToFloat(0x7fc00000u);
  if (largest == 0) return 1.0f;
  return Max(Divide(BitsToFloat(largest), 448.0f), BitsToFloat(1));
}

MARCORO_DEVICE void StoreFourCodes(const Float4& four, float scale, int left, bool aligned,
                                   char* to) {
  uint32_t codes = 0;
  MARCORO_UNROLL_LOOP
  for (int e = 0; e < kVector; ++e) {
    if (!IsNan(scale)) codes |= EncodeE4M3(Divide(four.value[e], scale)) << (8 * e);
  }
  if (aligned && left >= kVector) {
    *reinterpret_cast<uint32_t*>(to) = codes;
    return;
  }
  MARCORO_UNROLL_LOOP
  for (int e = 0; e < kVector; ++e) {
    if (e < left) to[e] = static_cast<char>(codes >> (8 * e) & 0xffu);
  }
}

MARCORO_KERNEL(kThreads, 1) RopeFp8Kernel(RopeRows rows) {
  LaunchDependents();
  const int64_t row = BlockIndexX();
  const int thread = BlockIndexY() * kThreads + ThreadIndex();
  const int head = thread / rows.head_threads;
  const int position = rows.positions[row];
  if (position < 0) return WaitForKernelAhead();
  const int half = rows.head_dim / 2;
  const int i = thread % rows.head_threads * kVector;
  const int left = half - i;
  const bool exists = head < rows.heads + 2 * rows.kv_heads && left > 0;

  Rotation rotation = {};
  if (exists) rotation = LoadRotation(rows, position, head, i);
  WaitForKernelAhead();
  HeadPart part = {};
  if (exists) part = LoadPart(rows, row, head, i, rotation);
  const float scale = ScaleOf(LargestMagnitude(rows, part));
  if (!exists) return;
  if (head < rows.heads) {
    uint16_t* to = Destination(rows, row, position, head) + i;
    StoreFourBf16(to, part.first, left, rows.aligned);
    StoreFourBf16(to + half, part.second, left, rows.aligned);
    return;
  }
  char* const block_head = HeadInBlock(rows, row, position, head, KvFormat::kFp8);
  char* const codes = block_head + ElementInHead(rows, position, head) + i;
  StoreFourCodes(part.first, scale, left, rows.aligned, codes);
  StoreFourCodes(part.second, scale, left, rows.aligned, codes + half);
  if (i > 0) return;
  const int64_t scales =
      IsValue(rows, head) ? ValueScales(rows.head_dim) : KeyScales(rows.head_dim);
  reinterpret_cast<float*>(block_head + scales)[position % kBlockTokens] = scale;
}

// Threads that share a head.
int HeadThreads(int head_dim, KvFormat format) {
  const int needed = (head_dim / 2 + kVector - 1) / kVector;
  if (format != KvFormat::kFp8) return needed;
  MARCORO_CHECK(needed <= kWarpThreads);
  int threads = 1;
  while (threads < needed) threads *= 2;
  return threads;
}

}  // namespace

void RopeAndStoreKv(Stream stream, const Tensor& qkv, const Tensor& rope,
                    const AttentionShape& shape, const DeviceStep& step, const KvCacheLayer& cache,
                    const Tensor& q) {
  const int half = shape.head_dim / 2;
  const int head_threads = HeadThreads(shape.head_dim, cache.format);
  const int threads = (shape.heads + 2 * shape.kv_heads) * head_threads;
  const RopeRows rows = {.qkv = qkv.Row<float>(0),
                         .qkv_stride = qkv.stride,
                         .rope = rope.Row<float>(0),
                         .rope_stride = rope.stride,
                         .q = q.Row<uint16_t>(0),
                         .q_stride = q.stride,
                         .cache = static_cast<char*>(cache.data),
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
         cache.format == KvFormat::kFp8 ? RopeFp8Kernel : RopeKernel, rows);
}

}  // namespace marcoro::cuda
