// A warp takes a part of 1024 logits: it reads them once, 32 to a lane, eight loads of 16 bytes
// under way, finds the largest, then adds up the exponentials from registers, in double. One warp
// of the row then puts its parts together: lane l those of index l, l + 32, …, in order, then the
// lanes in a butterfly. All of this depends on the length of a row only.
//
// With scratch memory a block is four parts, so that a row of 32000 is spread over 8
// multiprocessors and one of 256000 over 63: a few microseconds, most of them the two launches.
// Without it a block of 32 warps takes a whole row, which at 32000 logits and 60 bytes a clock from
// the second-level cache takes as long; at 256000 it is some 15 microseconds.
#include "kernels/cuda/device/doubles.h"
#include "kernels/cuda/device/exponential.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/vectors.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

constexpr int kVectors = 8;                                     // of a lane
constexpr int kPartLogits = kVectors * kVector * kWarpThreads;  // 1024
constexpr int kPartsOfBlock = 4;
constexpr int kRowThreads = 1024;
constexpr int kNoIndex = 0x7fffffff;

struct LogitRows {
  const float* logits;
  int64_t stride;
  int columns;
  int parts;
  bool aligned;
  LogitSummary* out;
};

struct alignas(16) Part {
  double sum;  // Σ exp(logit - max); 0 if max is -infinity
  float max;
  int32_t best;
  int32_t has_nan;
};

// The largest logit so far, the lower index among equals.
struct Largest {
  float value;
  int32_t index;
};

MARCORO_DEVICE float Infinity() { return BitsToFloat(0x7f800000u); }

MARCORO_DEVICE Largest LargerOf(const Largest& a, const Largest& b) {
  const bool b_wins = b.value > a.value || (b.value == a.value && b.index < a.index);
  return b_wins ? b : a;
}

MARCORO_DEVICE Largest LargestOfWarp(Largest mine) {
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    mine = LargerOf(mine, {ShuffleXor(mine.value, mask), ShuffleXor(mine.index, mask)});
  }
  return mine;
}

MARCORO_DEVICE double SumOfWarp(double mine) {
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    mine = AddDouble(mine, ShuffleXor(mine, mask));
  }
  return mine;
}

// Logits [first, first + 1024) of a row, as far as there are any; all lanes get the result.
MARCORO_DEVICE Part SummarizePart(const float* row, int first, int columns, bool aligned) {
  Float4 logits[kVectors];
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kVectors; ++v) {
    const int i = first + (v * kWarpThreads + Lane()) * kVector;
    logits[v] = LoadFour(row + i, columns - i, aligned);
  }
  Largest largest = {-Infinity(), kNoIndex};
  bool has_nan = false;
  MARCORO_UNROLL_LOOP
  for (int v = 0; v < kVectors; ++v) {
    MARCORO_UNROLL_LOOP
    for (int e = 0; e < kVector; ++e) {
      const int i = first + (v * kWarpThreads + Lane()) * kVector + e;
      float& logit = logits[v].value[e];
      logit = i < columns ? logit : -Infinity();
      has_nan = has_nan || IsNan(logit);
      if (i < columns) largest = LargerOf(largest, {logit, i});
    }
  }
  largest = LargestOfWarp(largest);
  double sum = 0;
  if (largest.value > -Infinity()) {
    MARCORO_UNROLL_LOOP
    for (int v = 0; v < kVectors; ++v) {
      MARCORO_UNROLL_LOOP
      for (int e = 0; e < kVector; ++e) {
        sum = AddDouble(sum, ExpOfNegative(Subtract(logits[v].value[e], largest.value)));
      }
    }
  }
  return {SumOfWarp(sum), largest.value, largest.index, Ballot(has_nan) != 0 ? 1 : 0};
}

// By one warp; load(i) is part i.
template <typename Load>
MARCORO_DEVICE void CombineParts(int parts, const Load& load, LogitSummary* out) {
  Largest largest = {-Infinity(), kNoIndex};
  bool has_nan = false;
  for (int i = Lane(); i < parts; i += kWarpThreads) {
    const Part part = load(i);
    largest = LargerOf(largest, {part.max, part.best});
    has_nan = has_nan || part.has_nan != 0;
  }
  largest = LargestOfWarp(largest);
  double sum = 0;
  for (int i = Lane(); i < parts; i += kWarpThreads) {
    const Part part = load(i);
    if (part.sum == 0) continue;
    const double below = AddDouble(part.max, -static_cast<double>(largest.value));
    sum = AddDouble(sum, MultiplyDouble(part.sum, ExpDouble(below)));
  }
  sum = SumOfWarp(sum);
  const bool any_nan = Ballot(has_nan) != 0;
  if (Lane() != 0) return;
  // All masked, or one overflowed: nothing to add up.
  const bool infinite = largest.value == Infinity() || largest.value == -Infinity();
  *out = {.best = largest.index,
          .max = largest.value,
          .log_sum_exp = infinite ? largest.value : AddDouble(largest.value, LogDouble(sum)),
          .has_nan = any_nan};
}

MARCORO_KERNEL(kPartsOfBlock* kWarpThreads, 1) SummarizePartsKernel(LogitRows rows, Part* parts) {
  const int64_t row = BlockIndexX();
  const int index = BlockIndexY() * kPartsOfBlock + Warp();
  if (index >= rows.parts) return;
  const Part part = SummarizePart(rows.logits + row * rows.stride, index * kPartLogits,
                                  rows.columns, rows.aligned);
  if (Lane() == 0) parts[row * rows.parts + index] = part;
}

MARCORO_KERNEL(kWarpThreads, 1) CombinePartsKernel(LogitRows rows, const Part* parts) {
  const int64_t row = BlockIndexX();
  const Part* first = parts + row * rows.parts;
  CombineParts(rows.parts, [&](int i) { return first[i]; }, rows.out + row);
}

MARCORO_KERNEL(kRowThreads, 1) SummarizeRowsKernel(LogitRows rows) {
  const int64_t row = BlockIndexX();
  const SharedArray<Part> parts(0, rows.parts);
  for (int i = Warp(); i < rows.parts; i += BlockThreads() / kWarpThreads) {
    const Part part =
        SummarizePart(rows.logits + row * rows.stride, i * kPartLogits, rows.columns, rows.aligned);
    if (Lane() == 0) parts.Store(i, part);
  }
  SyncBlock();
  if (Warp() == 0) {
    CombineParts(rows.parts, [&](int i) { return parts.Load(i); }, rows.out + row);
  }
}

int PartsOf(int64_t columns) { return static_cast<int>((columns + kPartLogits - 1) / kPartLogits); }

}  // namespace

size_t SummarizeLogitsScratchBytes(int64_t rows, int64_t columns) {
  return static_cast<size_t>(rows * PartsOf(columns)) * sizeof(Part);
}

void SummarizeLogits(Stream stream, const Tensor& logits, LogitSummary* out, void* scratch) {
  const LogitRows rows = {.logits = logits.Row<float>(0),
                          .stride = logits.stride,
                          .columns = static_cast<int>(logits.columns),
                          .parts = PartsOf(logits.columns),
                          .aligned = RowsAreAligned(logits.data, logits.stride, sizeof(float)),
                          .out = out};
  const auto count = static_cast<int>(logits.rows);
  if (scratch == nullptr) {
    const int warps =
        rows.parts < kRowThreads / kWarpThreads ? rows.parts : kRowThreads / kWarpThreads;
    return Launch(stream,
                  {.grid_x = count,
                   .threads = warps * kWarpThreads,
                   .shared_bytes = rows.parts * static_cast<int>(sizeof(Part))},
                  SummarizeRowsKernel, rows);
  }
  auto* parts = static_cast<Part*>(scratch);
  Launch(stream,
         {.grid_x = count,
          .grid_y = (rows.parts + kPartsOfBlock - 1) / kPartsOfBlock,
          .threads = kPartsOfBlock * kWarpThreads},
         SummarizePartsKernel, rows, parts);
  Launch(stream, {.grid_x = count, .threads = kWarpThreads}, CombinePartsKernel, rows, parts);
}

}  // namespace marcoro::cuda
