// Chooses how the sequences of a step are attended to. The choice is made from the bounds of a
// launch alone, so that a captured step can be run again with other lengths: the kernels find out
// which sequences are theirs. It is a matter of speed, never of bits.
#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_limits.h"

namespace marcoro::cuda {
namespace {

constexpr int kWalkRows = 128;  // query rows of a block of attention_walk.cu
constexpr int kMostSplitRows = 256;

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool Splits(const AttentionShape& shape, KvFormat format) {
  const int bytes = SplitSharedBytes(shape.head_dim, format);
  return bytes > 0 && bytes <= LimitsOfDevice().shared_bytes;
}

// Two on each multiprocessor, but not more than there can be pieces of work (attention_pieces.h).
int64_t SplitBlocks(const AttentionShape& shape, int64_t rows, int64_t splits) {
  const int64_t tiles = DivideUp(shape.heads / shape.kv_heads, kQueryTileRows);
  return std::clamp<int64_t>(rows * tiles * shape.kv_heads * splits, 1, ArrivalCounters());
}

// Where blocks of 128 query rows would leave multiprocessors idle, sequences of up to
// kMostSplitRows are split, though each 16 of their query rows read the cache again (from the
// second-level cache).
int SplitRows(const AttentionShape& shape, KvFormat format, int64_t rows) {
  if (!Splits(shape, format)) return 0;
  const int64_t walk_blocks = DivideUp(rows * shape.heads, kWalkRows);
  if (walk_blocks < LimitsOfDevice().multiprocessors) return kMostSplitRows;
  return static_cast<int>(DivideUp(shape.heads / shape.kv_heads, kQueryTileRows) * kQueryTileRows);
}

}  // namespace

int ArrivalCounters() { return 2 * LimitsOfDevice().multiprocessors; }

size_t AttentionScratchBytes(const AttentionShape& shape, int64_t rows, int64_t context) {
  if (!Splits(shape, KvFormat::kActivation) && !Splits(shape, KvFormat::kFp8)) return 0;
  const int64_t splits = DivideUp(context, kSplitPositions);
  return static_cast<size_t>(SplitBlocks(shape, rows, splits) * splits *
                             PartialFloats(PaddedHeadDim(shape.head_dim))) *
         sizeof(float);
}

void Attention(Stream stream, const Tensor& q, const AttentionShape& shape, const DeviceStep& step,
               const KvCacheLayer& cache, const Tensor& out, void* scratch) {
  if (step.rows == 0) return;
  MARCORO_CHECK(shape.head_dim % 2 == 0 && shape.head_dim <= kMostHeadDim);
  MARCORO_CHECK(q.stride % 2 == 0 && out.stride % 2 == 0);
  const int64_t splits = DivideUp(step.context, kSplitPositions);
  const AttentionTask task = {
      .q = q.Row<uint16_t>(0),
      .q_stride = q.stride,
      .out = out.Row<uint16_t>(0),
      .out_stride = out.stride,
      .cache = static_cast<const char*>(cache.data),
      .format = cache.format,
      .step = step,
      .heads = shape.heads,
      .kv_heads = shape.kv_heads,
      .group = shape.heads / shape.kv_heads,
      .head_dim = shape.head_dim,
      .window = shape.window,
      .scale = static_cast<float>(1.4426950408889634 / std::sqrt(double(shape.head_dim))),
      .split_rows = SplitRows(shape, cache.format, step.rows),
      .split_blocks = static_cast<int>(SplitBlocks(shape, step.rows, splits)),
      .most_splits = static_cast<int>(splits),
      .partials = static_cast<float*>(scratch)};
  if (task.split_rows > 0) AttendSplits(stream, task);
  if (task.split_rows == 0 || step.most_tokens * task.group > task.split_rows) {
    AttendWalks(stream, task);
  }
}

}  // namespace marcoro::cuda
