// Which kernel multiplies how many tokens, and how it shares out the work. No plan changes a bit of
// the product: only the layout's leaves and their tree do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul_layout.h"
#include "kernels/tensor.h"

namespace marcoro::cuda {

// A cluster has 1, 2, 4 or 8 blocks: more are not promised by every GPU that has clusters.
inline constexpr int kMostClusterBlocks = 8;

// Of the device.
struct MatmulLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // most that a block may have
  // Whether more than a few tokens are multiplied by warpgroups: only where that gives the same
  // bits.
  bool warpgroups = false;
  // Whether codes are multiplied by warpgroups, however many tokens there are (matmul_codes.h).
  bool code_warpgroups = false;
  // How many clusters of 2, of 4 and of 8 blocks run at once if each block takes a multiprocessor;
  // 0 where there are none.
  std::array<int, 3> clusters = {};

  // The same for any number of blocks.
  int Clusters(int blocks) const {
    if (blocks == 1) return multiprocessors;
    for (int i = 0; i < static_cast<int>(clusters.size()); ++i) {
      if (blocks == 2 << i) return clusters[static_cast<size_t>(i)];
    }
    return 0;
  }
};

struct MatmulPlan {
  // Few tokens: activations stay in shared memory, blocks walk over tiles. Many: a block has its
  // own rows and tokens, and both operands pass through shared memory. By clusters: warpgroups walk
  // over tiles of 64 rows, each block of a cluster with a leaf of its own.
  bool few_tokens = false;
  bool by_clusters = false;
  DType activations = DType::kBF16;
  int token_tiles = 0;   // of 8 tokens, that a block computes at once
  int block_leaves = 0;  // a power of two; neighbours, that a block sums itself
  // Blocks that share a tile's leaves: those whose sums pass through scratch memory, and those of a
  // cluster, whose sums pass through its shared memory. One of the two is 1; their product is
  // leaves / block_leaves.
  int parts = 0;
  int cluster_blocks = 1;
  int shared_bytes = 0;
  // Few tokens and clusters: tiles that a block computes at once, and blocks of a part. Few tokens:
  // steps of a stage. Clusters: stages.
  int slots = 0;
  int blocks = 0;
  int stage_steps = 0;
  int stages = 0;
  // Many tokens: warps, of 32 rows each; or products, of 64 rows each, that each of a block's two
  // warpgroups has (then there are 8 warps and the one that copies). Clusters: products of each
  // warpgroup.
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
