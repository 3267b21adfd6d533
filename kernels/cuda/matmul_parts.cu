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
  const float* token_scales = nullptr;  // null for BF16
  int64_t token_scale_stride = 0;
  MatmulOutput parts;
  MatmulOutput out;
  int level = 0;
  int scale_level = 0;  // none if the parts have their scales
  int part_count = 0;
};

// The tree over a number of parts that is not known before: like a binary counter, node i of a
// level waits for node i + 1.
template <typename Scale>
MARCORO_DEVICE float SumManyParts(const PartsWork& work, const float* part, const Scale& scale) {
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
        if (work.level + height + 1 == work.scale_level) node = scale(node, i);
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
  const auto scale = [&](float node, int i) {
    node = Multiply(node, factor);
    if (work.token_scales == nullptr) return node;
    const int segment = i >> (work.scale_level - work.level);
    return Multiply(node, work.token_scales[token * work.token_scale_stride + segment]);
  };
  const auto load = [&](int i) { return part[i * work.parts.part_stride]; };
  float sum;
  switch (work.part_count) {
    case 2:
      sum = SumTree<2>(work.level, work.scale_level, scale, load);
      break;
    case 4:
      sum = SumTree<4>(work.level, work.scale_level, scale, load);
      break;
    case 8:
      sum = SumTree<8>(work.level, work.scale_level, scale, load);
      break;
    default:
      sum = SumManyParts(work, part, scale);
  }
  work.out.data[token * work.out.stride + row] = sum;
}

}  // namespace

void SumParts(Stream stream, const MatmulOperands& operands, int part_count, int level,
              const MatmulOutput& out) {
  MARCORO_CHECK(part_count <= 1024);
  const MatmulLayout& layout = operands.weight.layout;
  const LaunchShape shape = {.grid_x = (layout.rows + kThreads - 1) / kThreads,
                             .grid_y = operands.x.tokens,
                             .threads = kThreads,
                             .overlaps_kernel_ahead = true};
  Launch(stream, shape, SumPartsKernel,
         PartsWork{.weight = operands.weight,
                   .token_scales = operands.x.scales,
                   .token_scale_stride = operands.x.scale_stride,
                   .parts = operands.out,
                   .out = out,
                   .level = level,
                   .scale_level = layout.scale_level > level ? layout.scale_level : -1,
                   .part_count = part_count});
}

}  // namespace marcoro::cuda
