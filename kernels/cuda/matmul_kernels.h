// The parts of a matmul on the device, one file each.
#pragma once

#include <array>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul_layout.h"
#include "kernels/cuda/matmul_plan.h"

namespace marcoro::cuda {

// Element (token, row) of a part's sums is data[part * part_stride + token * stride + row].
struct MatmulOutput {
  float* data = nullptr;
  int64_t stride = 0;
  int64_t part_stride = 0;
};

// Rows of BF16, or of E4M3 with scales[token * scale_stride + segment]. `vectors`: those of all
// leaves begin at multiples of 16 bytes.
struct ActivationView {
  const void* data = nullptr;
  int64_t stride = 0;  // in elements
  int tokens = 0;
  bool vectors = false;
  const float* scales = nullptr;
  int64_t scale_stride = 0;
};

// The types of a product's operands. Two of E4M3 are multiplied as they are; weights of E4M3 become
// BF16 where the activations are.
template <DType kWeightType, DType kActivationType>
struct MatmulTypes {
  static constexpr DType kWeight = kWeightType;
  static constexpr bool kQuantized = kActivationType == DType::kF8E4M3;
  using Activation = std::conditional_t<kQuantized, uint8_t, uint16_t>;
  static constexpr int kActivationBytes = static_cast<int>(sizeof(Activation));
};

struct MatmulOperands {
  WeightView weight;
  ActivationView x;
  MatmulOutput out;
  int block_leaves = 0;
};

// Stages of weights that a warp of the few tokens' kernel has in shared memory: all but one are
// under way while it works on one.
inline constexpr int kRingStages = 4;
inline constexpr int kMostFewTokens = 32;
inline constexpr int kMostWarps = 16;

// Where the few tokens' kernel keeps what in shared memory, in bytes.
struct FewTokensMemory {
  int token_bytes = 0;   // from one token's activations to the next's
  int zeros = 0;         // 16 bytes for tokens that there are not; before them the activations
  int token_scales = 0;  // of E4M3, of the block's segments
  int sums = 0;          // of the warps
  int ring = 0;          // of weights
  int end = 0;
};
FewTokensMemory LayOutFewTokens(const MatmulLayout& layout, DType dtype, const MatmulPlan& plan,
                                int tokens);
void MultiplyFewTokens(Stream stream, const MatmulPlan& plan, DType dtype,
                       const MatmulOperands& operands);

// Rows of a warp and tokens of a block of the many tokens' kernel.
inline constexpr int kWarpRows = 32;
inline constexpr int kMostManyWarps = 8;
int ManyTokensSharedBytes(DType dtype, const MatmulPlan& plan);
void MultiplyManyTokens(Stream stream, const MatmulPlan& plan, DType dtype,
                        const MatmulOperands& operands);

// The many tokens' kernel for warpgroups: those of a block that multiply, rows of a product of one,
// and tokens of a block.
inline constexpr int kBlockWarpgroups = 2;
inline constexpr int kWarpgroupRows = 64;
inline constexpr int kWarpgroupTokens = 128;
int WarpgroupsSharedBytes(const MatmulPlan& plan);
// `x` has vectors, and leaves are whole steps; so too for clusters.
void MultiplyByWarpgroups(Stream stream, const MatmulPlan& plan, DType dtype,
                          const MatmulOperands& operands);
// *there, in device memory, becomes 1 if the program holds that kernel for this GPU, else 0.
void FindWarpgroups(Stream stream, int* there);

// The kernel for the numbers of tokens between, by warpgroups of a cluster: most tokens, and most
// warpgroups of a block that multiply.
inline constexpr int kMostClusterTokens = 64;
inline constexpr int kMostClusterWarpgroups = 4;
// With the plan's tiles, tokens and stages.
int ClustersSharedBytes(DType dtype, const MatmulPlan& plan);
void MultiplyByClusters(Stream stream, const MatmulPlan& plan, DType dtype,
                        const MatmulOperands& operands);
// What MatmulLimits::clusters is on this thread's device; cheap but for the first time.
std::array<int, 3> ClustersOfDevice();

// out = the tree over the operands' output, whose parts are nodes of the given level.
void SumParts(Stream stream, const MatmulOperands& operands, int part_count, int level,
              const MatmulOutput& out);

}  // namespace marcoro::cuda
