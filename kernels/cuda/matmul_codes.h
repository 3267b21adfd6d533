// Products of E4M3 weights with E4M3 activations by warpgroups (wgmma, sm_90a), which alone
// multiply codes as they are there: twice the rate of BF16, where mma.sync takes half of it.
//
// Their sums may have other bits than those of mma.sync, so that either all numbers of tokens are
// multiplied in this way or none is, and the backend's name says which (device_identity.h). Packed
// weights, leaves, sums of 128 columns and the tree are the same (matmul_layout.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/matmul_plan.h"

namespace marcoro::cuda {

// Whether this weight's products can be those of warpgroups for all numbers of tokens. Depends on
// its leaves only, which are the same for all shards.
bool SuitsWarpgroupCodes(const MatmulLayout& layout, const MatmulLimits& limits);
// Its plan for these tokens, 1 or more. Those for many tokens take rows that can be copied 16 bytes
// at a time.
MatmulPlan PlanWarpgroupCodes(const MatmulLayout& layout, int64_t tokens,
                              const MatmulLimits& limits);
// At least what plans for up to so many tokens need, in floats.
int64_t WarpgroupCodesScratch(const MatmulLayout& layout, int64_t tokens,
                              const MatmulLimits& limits);
void MultiplyWarpgroupCodes(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands);

// The parts of it, one file each.

// Warps that a warpgroup's products are of.
inline constexpr int kWarpgroupWarps = 4;
// Tokens that plans for few of them take where rows cannot be copied 16 bytes at a time.
inline constexpr int kFewestCodeTokens = 8;

// Where the kernel for few tokens keeps what in shared memory, in bytes; activations come first.
struct FewCodesMemory {
  int token_tile_bytes = 0;  // of a leaf of 8 tokens' activations
  int token_scales = 0;      // of the block's segments
  int sums = 0;              // of the warps
  int factors = 0;           // of the rows
  int ring = 0;              // of weights
  int end = 0;
};
FewCodesMemory LayOutFewCodes(const MatmulLayout& layout, const MatmulPlan& plan);
void MultiplyFewCodes(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands);

int ManyCodesSharedBytes(const MatmulPlan& plan);
void MultiplyManyCodes(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands);

}  // namespace marcoro::cuda
