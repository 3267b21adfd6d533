// The host's side of products of codes by warpgroups: which kernel, in which shape.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/matmul_codes.h"

namespace marcoro::cuda {
namespace {

constexpr DType kCodes = DType::kF8E4M3;
// As in matmul.cu: what a multiprocessor has to have under way, and the most leaves that a block of
// the kernel for many tokens sums.
constexpr int kWantedBytesUnderWay = 48 * 1024;
constexpr int kMostManyLeaves = 8;

int CeilDivide(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// A plan for few tokens with so many leaves a block and steps a stage; slots == 0 if it does not
// fit.
MatmulPlan PlanFew(const MatmulLayout& layout, int64_t tokens, int block_leaves, int stage_steps,
                   const MatmulLimits& limits) {
  MatmulPlan plan;
  plan.few_tokens = true;
  plan.code_warpgroups = true;
  plan.activations = kCodes;
  plan.token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : 4;
  plan.block_leaves = block_leaves;
  plan.parts = layout.leaves / block_leaves;
  plan.stage_steps = stage_steps;
  plan.blocks = std::min(std::max(limits.multiprocessors / plan.parts, 1), layout.tiles);
  const int block_tiles = CeilDivide(layout.tiles, plan.blocks);
  // Whole warpgroups.
  const int slot_step = std::max(kWarpgroupWarps / block_leaves, 1);
  for (int most = kMostWarps / block_leaves; most > 0; most -= slot_step) {
    // Walks of equal length for all slots.
    const int slots = CeilDivide(block_tiles, CeilDivide(block_tiles, most));
    plan.slots = CeilDivide(slots, slot_step) * slot_step;
    plan.shared_bytes = LayOutFewCodes(layout, plan).end;
    if (plan.shared_bytes <= limits.shared_bytes) return plan;
  }
  plan.slots = 0;
  return plan;
}

int64_t BytesUnderWay(const MatmulPlan& plan) {
  return int64_t{plan.slots} * plan.block_leaves * (kRingStages - 1) * plan.stage_steps *
         StepBytes(kCodes);
}

// The plan with the fewest parts that has enough under way, or else with the most; slots == 0 if
// none fits.
MatmulPlan BestFew(const MatmulLayout& layout, int64_t tokens, const MatmulLimits& limits) {
  MatmulPlan best;
  for (int leaves = std::min(layout.leaves, kMostWarps); leaves > 0; leaves /= 2) {
    for (const int stage_steps : {2 * kPromotedSteps, kPromotedSteps}) {
      const MatmulPlan plan = PlanFew(layout, tokens, leaves, stage_steps, limits);
      if (plan.slots == 0) continue;
      if (best.slots == 0 || BytesUnderWay(plan) > BytesUnderWay(best)) best = plan;
    }
    if (best.slots > 0 && BytesUnderWay(best) >= kWantedBytesUnderWay) break;
  }
  return best;
}

int BlockRows(const MatmulPlan& plan) {
  return kBlockWarpgroups * plan.warpgroup_tiles * kWarpgroupRows;
}

int Blocks(const MatmulLayout& layout, const MatmulPlan& plan, int64_t tokens) {
  return CeilDivide(layout.rows, BlockRows(plan)) * CeilDivide(tokens, plan.token_tiles * 8) *
         plan.parts;
}

// The largest blocks for so many tokens.
MatmulPlan LargestMany(const MatmulLayout& layout, int64_t tokens) {
  MatmulPlan plan;
  plan.code_warpgroups = true;
  plan.activations = kCodes;
  plan.warps = kMostManyWarps;
  plan.token_tiles = tokens > kWarpgroupTokens / 2 ? kWarpgroupTokens / 8 : kWarpgroupTokens / 16;
  plan.block_leaves = std::min(layout.leaves, kMostManyLeaves);
  plan.parts = layout.leaves / plan.block_leaves;
  // One level of the tree finds room beside the largest block.
  plan.warpgroup_tiles = plan.token_tiles == kWarpgroupTokens / 8 && plan.block_leaves <= 2 ? 2 : 1;
  return plan;
}

MatmulPlan PlanMany(const MatmulLayout& layout, int64_t tokens, const MatmulLimits& limits) {
  MatmulPlan plan = LargestMany(layout, tokens);
  // Work for nearly every multiprocessor: from the leaves first, because smaller blocks read more.
  const int wanted = limits.multiprocessors * 9 / 10;
  while (Blocks(layout, plan, tokens) < wanted && plan.block_leaves > 1) {
    plan.block_leaves /= 2;
    plan.parts *= 2;
  }
  if (Blocks(layout, plan, tokens) < wanted) plan.warpgroup_tiles = 1;
  plan.shared_bytes = ManyCodesSharedBytes(plan);
  MARCORO_CHECK(plan.shared_bytes <= limits.shared_bytes);
  return plan;
}

}  // namespace

bool SuitsWarpgroupCodes(const MatmulLayout& layout, const MatmulLimits& limits) {
  return PlanFew(layout, kFewestCodeTokens, /*block_leaves=*/1, kPromotedSteps, limits).slots > 0;
}

MatmulPlan PlanWarpgroupCodes(const MatmulLayout& layout, int64_t tokens,
                              const MatmulLimits& limits) {
  if (tokens <= kMostFewTokens) {
    const MatmulPlan plan = BestFew(layout, tokens, limits);
    if (plan.slots > 0) return plan;
  }
  return PlanMany(layout, tokens, limits);
}

int64_t WarpgroupCodesScratch(const MatmulLayout& layout, int64_t tokens,
                              const MatmulLimits& limits) {
  int64_t floats = layout.leaves * std::min<int64_t>(tokens, kMostFewTokens) * layout.rows;
  for (const int64_t some : {std::min<int64_t>(tokens, kWarpgroupTokens / 2), tokens}) {
    const MatmulPlan plan = LargestMany(layout, some);
    // PlanMany makes more parts while it has less blocks than multiprocessors.
    const int64_t most =
        int64_t{2} * limits.multiprocessors * BlockRows(plan) * plan.token_tiles * 8;
    floats = std::max({floats, plan.parts > 1 ? plan.parts * some * layout.rows : 0,
                       std::min(layout.leaves * some * layout.rows, most)});
  }
  return floats;
}

void MultiplyWarpgroupCodes(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands) {
  if (plan.few_tokens) return MultiplyFewCodes(stream, plan, operands);
  MultiplyManyCodes(stream, plan, operands);
}

}  // namespace marcoro::cuda
