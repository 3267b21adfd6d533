// The host's side of a matmul: which kernel, in which shape.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/matmul_codes.h"
#include "kernels/cuda/matmul_codes_probe.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/matmul_limits.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/cuda/matmul_probe.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

// What a multiprocessor has to have under way to keep memory busy (bandwidth times latency), with
// something to spare.
constexpr int kWantedBytesUnderWay = 48 * 1024;
// The many tokens' kernel sums at most so many leaves in a block: deeper trees find no room.
constexpr int kMostManyLeaves = 8;
constexpr int kLeastManyWarps = 4;

int CeilDivide(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Whether rows can be read 16 bytes at a time.
bool HasVectors(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
         x.stride * static_cast<int64_t>(SizeOf(x.dtype)) % 16 == 0;
}

// A plan for few tokens with so many leaves a block and steps a stage; slots == 0 if it does not
// fit.
MatmulPlan PlanFewTokens(const MatmulLayout& layout, DType dtype, DType activations, int tokens,
                         int block_leaves, int stage_steps, const MatmulLimits& limits) {
  MatmulPlan plan;
  plan.few_tokens = true;
  plan.activations = activations;
  plan.token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : 4;
  plan.block_leaves = block_leaves;
  plan.parts = layout.leaves / block_leaves;
  plan.stage_steps = stage_steps;
  plan.blocks = std::min(std::max(limits.multiprocessors / plan.parts, 1), layout.tiles);
  if (plan.parts > 1 && limits.Clusters(plan.parts) > 0) {
    plan.blocks = std::min(limits.Clusters(plan.parts), layout.tiles);
    plan.cluster_blocks = plan.parts;
    plan.parts = 1;
  }
  const int block_tiles = CeilDivide(layout.tiles, plan.blocks);
  for (int most = kMostWarps / block_leaves; most > 0; --most) {
    // Walks of equal length for all slots.
    plan.slots = CeilDivide(block_tiles, CeilDivide(block_tiles, most));
    plan.shared_bytes = LayOutFewTokens(layout, dtype, plan, tokens).end;
    if (plan.shared_bytes <= limits.shared_bytes) return plan;
  }
  plan.slots = 0;
  return plan;
}

int64_t BytesUnderWay(const MatmulPlan& plan, DType dtype) {
  return int64_t{plan.slots} * plan.block_leaves * (kRingStages - 1) * plan.stage_steps *
         StepBytes(dtype);
}

// The plan with the fewest parts that has enough under way, or else with the most; slots == 0 if
// none fits.
MatmulPlan BestFewTokens(const MatmulLayout& layout, DType dtype, DType activations, int tokens,
                         const MatmulLimits& limits) {
  MatmulPlan best;
  for (int leaves = std::min(layout.leaves, kMostWarps); leaves > 0; leaves /= 2) {
    for (const int stage_bytes : {4096, 2048, 1024}) {
      const MatmulPlan plan = PlanFewTokens(layout, dtype, activations, tokens, leaves,
                                            stage_bytes / StepBytes(dtype), limits);
      if (plan.slots == 0) continue;
      if (best.slots == 0 || BytesUnderWay(plan, dtype) > BytesUnderWay(best, dtype)) best = plan;
    }
    if (best.slots > 0 && BytesUnderWay(best, dtype) >= kWantedBytesUnderWay) break;
  }
  return best;
}

// Each block of a cluster has one leaf: it takes all of the blocks that a tile has.
bool SuitsClusters(const MatmulLayout& layout, int64_t tokens, const MatmulLimits& limits) {
  return limits.warpgroups && tokens > 8 && tokens <= kMostClusterTokens &&
         layout.leaf_columns % kStepColumns == 0 && limits.Clusters(layout.leaves) > 0;
}

// As many stages as fit, of as many tiles as a cluster has, or of as many as leave room for a ring.
MatmulPlan PlanClusters(const MatmulLayout& layout, DType dtype, int64_t tokens,
                        const MatmulLimits& limits) {
  constexpr int kLeastStages = 3;
  constexpr int kMostStages = 12;
  MatmulPlan plan;
  plan.by_clusters = true;
  plan.token_tiles = tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8;
  plan.block_leaves = 1;
  plan.parts = 1;
  plan.cluster_blocks = layout.leaves;
  const int tiles = CeilDivide(layout.rows, kWarpgroupRows);
  plan.blocks = std::min(limits.Clusters(layout.leaves), tiles);
  const int cluster_tiles = CeilDivide(tiles, plan.blocks);
  for (int most = 2 * kMostClusterWarpgroups; most > 0; --most) {
    // Rounds of equal length for all slots.
    const int block_tiles = CeilDivide(cluster_tiles, CeilDivide(cluster_tiles, most));
    plan.warpgroup_tiles = block_tiles > kMostClusterWarpgroups ? 2 : 1;
    plan.slots = CeilDivide(block_tiles, plan.warpgroup_tiles) * plan.warpgroup_tiles;
    for (plan.stages = kMostStages; plan.stages >= kLeastStages; --plan.stages) {
      plan.shared_bytes = ClustersSharedBytes(dtype, plan);
      if (plan.shared_bytes <= limits.shared_bytes) return plan;
    }
  }
  plan.slots = 0;
  return plan;
}

int BlockRows(const MatmulPlan& plan) {
  return plan.warpgroup_tiles > 0 ? kBlockWarpgroups * plan.warpgroup_tiles * kWarpgroupRows
                                  : plan.warps * kWarpRows;
}

int Blocks(const MatmulLayout& layout, const MatmulPlan& plan, int64_t tokens) {
  return CeilDivide(layout.rows, BlockRows(plan)) * CeilDivide(tokens, plan.token_tiles * 8) *
         plan.parts;
}

// The largest blocks that fit.
MatmulPlan LargestManyTokens(const MatmulLayout& layout, DType dtype, DType activations,
                             int64_t tokens, const MatmulLimits& limits) {
  MatmulPlan plan;
  plan.activations = activations;
  plan.warps = kMostManyWarps;
  plan.token_tiles = tokens > 64 ? 16 : 8;
  plan.block_leaves = std::min(layout.leaves, kMostManyLeaves);
  if (plan.token_tiles == 16 && ManyTokensSharedBytes(dtype, plan) > limits.shared_bytes) {
    plan.token_tiles = 8;
  }
  while (plan.block_leaves > 1 && ManyTokensSharedBytes(dtype, plan) > limits.shared_bytes) {
    plan.block_leaves /= 2;
  }
  plan.parts = layout.leaves / plan.block_leaves;
  return plan;
}

// The same for warpgroups.
MatmulPlan LargestWarpgroups(const MatmulLayout& layout) {
  MatmulPlan plan;
  plan.warps = kMostManyWarps;
  plan.token_tiles = kWarpgroupTokens / 8;
  plan.block_leaves = std::min(layout.leaves, kMostManyLeaves);
  plan.parts = layout.leaves / plan.block_leaves;
  // One level of the tree finds room beside the largest block.
  plan.warpgroup_tiles = plan.block_leaves <= 2 ? 2 : 1;
  return plan;
}

// Fewer tokens than half of a block's would leave most of the products unused.
bool SuitsWarpgroups(const MatmulLayout& layout, int64_t tokens, const MatmulLimits& limits) {
  return limits.warpgroups && tokens > kWarpgroupTokens / 2 &&
         layout.leaf_columns % kStepColumns == 0;
}

MatmulPlan PlanManyTokens(const MatmulLayout& layout, DType dtype, DType activations,
                          int64_t tokens, const MatmulLimits& limits) {
  MatmulPlan plan = activations == DType::kBF16 && SuitsWarpgroups(layout, tokens, limits)
                        ? LargestWarpgroups(layout)
                        : LargestManyTokens(layout, dtype, activations, tokens, limits);
  // Work for nearly every multiprocessor: from the leaves first, because smaller blocks read more.
  const int wanted = limits.multiprocessors * 9 / 10;
  while (Blocks(layout, plan, tokens) < wanted && plan.block_leaves > 1) {
    plan.block_leaves /= 2;
    plan.parts *= 2;
  }
  if (plan.warpgroup_tiles > 0) {
    if (Blocks(layout, plan, tokens) < wanted) plan.warpgroup_tiles = 1;
    plan.shared_bytes = WarpgroupsSharedBytes(plan);
  } else {
    while (Blocks(layout, plan, tokens) < wanted && plan.warps > kLeastManyWarps) {
      plan.warps /= 2;
    }
    plan.shared_bytes = ManyTokensSharedBytes(dtype, plan);
  }
  MARCORO_CHECK(plan.shared_bytes <= limits.shared_bytes);
  return plan;
}

}  // namespace

MatmulPlan PlanMatmul(const WeightShape& shape, int64_t tokens, const MatmulLimits& limits,
                      DType activations) {
  const MatmulLayout layout = MakeMatmulLayout(shape);
  if (activations == DType::kF8E4M3 && limits.code_warpgroups &&
      SuitsWarpgroupCodes(layout, limits)) {
    return PlanWarpgroupCodes(layout, tokens, limits);
  }
  if (activations == DType::kBF16 && SuitsClusters(layout, tokens, limits)) {
    const MatmulPlan plan = PlanClusters(layout, shape.dtype, tokens, limits);
    if (plan.slots > 0) return plan;
  }
  if (tokens <= kMostFewTokens) {
    const MatmulPlan plan =
        BestFewTokens(layout, shape.dtype, activations, static_cast<int>(tokens), limits);
    if (plan.slots > 0) return plan;
  }
  return PlanManyTokens(layout, shape.dtype, activations, tokens, limits);
}

size_t PlanScratchBytes(const MatmulPlan& plan, const WeightShape& shape, int64_t tokens) {
  if (plan.parts == 1) return 0;
  return sizeof(float) * static_cast<size_t>(plan.parts) * static_cast<size_t>(tokens) *
         static_cast<size_t>(shape.rows);
}

void RunMatmul(Stream stream, const MatmulPlan& plan, const Tensor& x, const PackedWeight& weight,
               const Tensor& out, void* scratch, const Tensor* token_scales) {
  MARCORO_CHECK(plan.activations == x.dtype &&
                (token_scales != nullptr) == (x.dtype == DType::kF8E4M3));
  MatmulOperands operands;
  operands.weight = MakeWeightView(weight);
  const MatmulLayout& layout = operands.weight.layout;
  operands.x = {
      .data = x.data,
      .stride = x.stride,
      .tokens = static_cast<int>(x.rows),
      .vectors = HasVectors(x) && layout.leaf_columns * static_cast<int>(SizeOf(x.dtype)) % 16 == 0,
      .scales = token_scales == nullptr ? nullptr : token_scales->Row<float>(0),
      .scale_stride = token_scales == nullptr ? 0 : token_scales->stride};
  operands.block_leaves = plan.block_leaves;
  const MatmulOutput whole = {.data = out.Row<float>(0), .stride = out.stride, .part_stride = 0};
  operands.out = plan.parts == 1 ? whole
                                 : MatmulOutput{.data = static_cast<float*>(scratch),
                                                .stride = layout.rows,
                                                .part_stride = x.rows * layout.rows};
  if (plan.code_warpgroups) {
    MultiplyWarpgroupCodes(stream, plan, operands);
  } else if (plan.few_tokens) {
    MultiplyFewTokens(stream, plan, weight.shape.dtype, operands);
  } else if (plan.by_clusters) {
    MultiplyByClusters(stream, plan, weight.shape.dtype, operands);
  } else if (plan.warpgroup_tiles > 0) {
    MultiplyByWarpgroups(stream, plan, weight.shape.dtype, operands);
  } else {
    MultiplyManyTokens(stream, plan, weight.shape.dtype, operands);
  }
  if (plan.parts == 1) return;
  SumParts(stream, operands, plan.parts, Log2(plan.block_leaves), whole);
}

size_t MatmulScratchBytes(const WeightShape& shape, int64_t tokens, DType activations) {
  const MatmulLayout layout = MakeMatmulLayout(shape);
  if (layout.leaves == 1) return 0;
  const MatmulLimits limits = DeviceMatmulLimits();
  int64_t elements = layout.leaves * std::min<int64_t>(tokens, kMostFewTokens) * shape.rows;
  // For warpgroups too: whether they are used may not be known yet.
  for (const MatmulPlan& plan :
       {LargestManyTokens(layout, shape.dtype, activations, tokens, limits),
        LargestWarpgroups(layout)}) {
    // PlanManyTokens makes more parts while it has less blocks than multiprocessors.
    const int64_t most_elements =
        int64_t{2} * limits.multiprocessors * BlockRows(plan) * plan.token_tiles * 8;
    elements = std::max({elements, plan.parts > 1 ? plan.parts * tokens * shape.rows : 0,
                         std::min(layout.leaves * tokens * shape.rows, most_elements)});
  }
  if (activations == DType::kF8E4M3) {
    elements = std::max(elements, WarpgroupCodesScratch(layout, tokens, limits));
  }
  return sizeof(float) * static_cast<size_t>(elements);
}

void Matmul(Stream stream, const Tensor& x, const PackedWeight& weight, const Tensor& out,
            void* scratch) {
  if (x.rows == 0) return;
  MatmulLimits limits = DeviceMatmulLimits();
  limits.warpgroups = HasVectors(x) && MultipliesByWarpgroups(CurrentDevice());
  RunMatmul(stream, PlanMatmul(weight.shape, x.rows, limits), x, weight, out, scratch);
}

void MultiplyQuantized(Stream stream, const QuantizedActivations& x, const PackedWeight& weight,
                       const Tensor& out, void* scratch) {
  const int64_t tokens = x.codes.rows;
  if (tokens == 0) return;
  MatmulLimits limits = DeviceMatmulLimits();
  limits.code_warpgroups = MultipliesCodesByWarpgroups(CurrentDevice());
  MatmulPlan plan = PlanMatmul(weight.shape, tokens, limits, DType::kF8E4M3);
  int64_t slice = tokens;
  if (plan.code_warpgroups && !plan.few_tokens && !HasVectors(x.codes)) {
    // No model has such rows but the smallest: its speed does not matter, its bits do.
    slice = kFewestCodeTokens;
    plan = PlanMatmul(weight.shape, slice, limits, DType::kF8E4M3);
  }
  for (int64_t first = 0; first < tokens; first += slice) {
    const int64_t count = std::min(slice, tokens - first);
    const Tensor scales = x.scales.Rows(first, count);
    RunMatmul(stream, plan, x.codes.Rows(first, count), weight, out.Rows(first, count), scratch,
              &scales);
  }
}

}  // namespace marcoro::cuda
