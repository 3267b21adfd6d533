// The top of the tree where several blocks had parts of it: a thread takes an element. The parts
// are still in the second-level cache; a warp reads and writes whole lines.
#include "kernels/check.h"
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/matmul_fragments.h"
#include "kernels/cuda/matmul_kernels.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 256;

struct PartsWork {
  WeightView weight;
  MatmulOutput parts;
  MatmulOutput out;
  int level = 0;
  int scale_level = 0;  // none if the parts have their scales
  int part_count = 0;
};

// The tree over a number of parts that is not known before: like a binary counter, node i of a
// level waits for node i + 1.
MARCORO_DEVICE float SumManyParts(const PartsWork& work, const float* part, float factor) {
  constexpr int kMostLevels = 10;
  float waiting[kMostLevels];
  float node = 0;
  for (int i = 0; i < work.part_count; ++i) {
    node = part[i * work.parts.part_stride];
    bool carries = true;
    MARCORO_UNROLL_LOOP
    for (int height = 0; height < kMostLevels; ++height) {
      if (!carries) continue;
      if ((i >> height & 1) != 0) {
        node = Add(waiting[height], node);
        if (work.level + height + 1 == work.scale_level) node = Multiply(node, factor);
      } else {
        waiting[height] = node;
        carries = false;
      }
    }
  }
  return node;
}

MARCORO_KERNEL(kThreads, 1) SumPartsKernel(PartsWork work) {
  LaunchDependents();
  WaitForKernelAhead();
  const int row = BlockIndexX() * kThreads + ThreadIndex();
  const int64_t token = BlockIndexY();
  if (row >= work.weight.layout.rows) return;
  const float* part = work.parts.data + token * work.parts.stride + row;
  RawFactor raw;
  raw.Load(work.weight, row);
  const float factor = raw.Value();
  const auto load = [&](int i) { return part[i * work.parts.part_stride]; };
  float sum;
  switch (work.part_count) {
    case 2:
      sum = SumTree<2>(work.level, work.scale_level, factor, load);
      break;
    case 4:
      sum = SumTree<4>(work.level, work.scale_level, factor, load);
      break;
    case 8:
      sum = SumTree<8>(work.level, work.scale_level, factor, load);
      break;
    default:
      sum = SumManyParts(work, part, factor);
  }
  work.out.data[token * work.out.stride + row] = sum;
}

}  // namespace

void SumParts(Stream stream, const WeightView& weight, const MatmulOutput& parts, int part_count,
              int level, int tokens, const MatmulOutput& out) {
  MARCORO_CHECK(part_count <= 1024);
  const int scale_level = weight.layout.scale_level;
  const LaunchShape shape = {.grid_x = (weight.layout.rows + kThreads - 1) / kThreads,
                             .grid_y = tokens,
                             .threads = kThreads,
                             .overlaps_kernel_ahead = true};
  Launch(stream, shape, SumPartsKernel,
         PartsWork{.weight = weight,
                   .parts = parts,
                   .out = out,
                   .level = level,
                   .scale_level = scale_level > level ? scale_level : -1,
                   .part_count = part_count});
}

}  // namespace marcoro::cuda
