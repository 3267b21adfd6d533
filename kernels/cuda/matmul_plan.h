// Which kernel multiplies how many tokens, and how it shares out the work. No plan changes a bit of
// the product: only the layout's leaves and their tree do.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul_layout.h"
#include "kernels/tensor.h"

namespace marcoro::cuda {

// Of the device.
struct MatmulLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // most that a block may have
  // Whether many tokens are multiplied by warpgroups: only where that gives the same bits.
  bool warpgroups = false;
  // Whether codes are multiplied by warpgroups, however many tokens there are (matmul_codes.h).
  bool code_warpgroups = false;
};

struct MatmulPlan {
  // Few tokens: activations stay in shared memory, blocks walk over tiles. Many: a block has its
  // own rows and tokens, and both operands pass through shared memory.
  bool few_tokens = false;
  DType activations = DType::kBF16;
  int token_tiles = 0;   // of 8 tokens, that a block computes at once
  int block_leaves = 0;  // a power of two; neighbours, that a block sums itself
  int parts = 0;         // leaves / block_leaves: blocks whose sums pass through scratch memory
  int shared_bytes = 0;
  // Few tokens: tiles that a block computes at once, blocks of a part, and steps of a stage.
  int slots = 0;
  int blocks = 0;
  int stage_steps = 0;
  // Many tokens: warps, of 32 rows each; or products, of 64 rows each, that each of a block's two
  // warpgroups has (then there are 8 warps and the one that copies).
  int warps = 0;
  int warpgroup_tiles = 0;
  // Codes by warpgroups, few tokens' as well.
  bool code_warpgroups = false;

  friend bool operator==(const MatmulPlan&, const MatmulPlan&) = default;
};

MatmulPlan PlanMatmul(const WeightShape& shape, int64_t tokens, const MatmulLimits& limits,
                      DType activations = DType::kBF16);

// Bytes of scratch memory that it takes.
size_t PlanScratchBytes(const MatmulPlan& plan, const WeightShape& shape, int64_t tokens);

// Matmul by a given plan for these tokens; MultiplyQuantized with scales.
void RunMatmul(Stream stream, const MatmulPlan& plan, const Tensor& x, const PackedWeight& weight,
               const Tensor& out, void* scratch, const Tensor* token_scales = nullptr);

}  // namespace marcoro::cuda
