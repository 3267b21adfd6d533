// The product of codes of many tokens by warpgroups.
//
// Two warpgroups multiply, a third has the copy engine bring activations, swizzled, to shared
// memory: stages of 128 columns. Weights go from memory to registers, a stage ahead of their use:
// they are packed as A's fragments, 512 neighbouring bytes a warp. (How the two work together:
// matmul_warpgroups.cu.)
//
// Every 128 columns are a chain of four products, 64 rows by 64 tokens, which begins at zero and is
// then added to the leaf's sums in F32. A chain takes the tensor cores 128 cycles, adding it up
// some 40 to 60 and the trip through the pipeline as much: while one warpgroup adds, the other
// multiplies.
//
// A block has 256 rows and 128 tokens (two tiles of rows a warpgroup), or 128 rows where the tree
// is deeper than one level (half of the sums wait in registers then) or where tokens are few. For
// 128 columns of the large block the tensor cores need 1024 cycles. Meanwhile: shared memory
// delivers B four times (64 KB, 512 cycles); the second-level cache 48 KB (48 bytes a cycle, of
// some 40: that is the limit); the four schedulers have 1024 slots each for 2 x 260 instructions.
// The small block needs 32 KB in 512 cycles: 64 bytes a cycle.
#include "kernels/check.h"
#include "kernels/cuda/device/architecture.h"
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/register_share.h"
#include "kernels/cuda/device/tensor_map.h"
#include "kernels/cuda/device/warpgroup_matrix.h"
#include "kernels/cuda/matmul_codes.h"
#include "kernels/cuda/matmul_fragments.h"
#include "kernels/cuda/matmul_sums.h"

namespace marcoro::cuda {
namespace {

constexpr int kSummingWarps = kBlockWarpgroups * kWarpgroupWarps;
constexpr int kThreads = (kSummingWarps + kWarpgroupWarps) * kWarpThreads;
// Of a thread that sums and of one that copies: of 65536 in all.
constexpr int kSummingRegisters = 240;
constexpr int kCopyingRegisters = 24;
static_assert(kSummingWarps == kMostManyWarps);
constexpr int kStageSteps = kPromotedSteps;
constexpr int kStageColumns = kStageSteps * kStepColumns;
static_assert(kStageColumns == kSwizzledRowBytes);
constexpr int kStages = 5;
constexpr int kProductTokens = 64;

template <int kTileCount, int kTokenCount>
struct Shape {
  static constexpr DType kWeight = DType::kF8E4M3;
  static constexpr int kTilesOfWarp = kTileCount;
  static constexpr int kTileJump = kWarpgroupRows;
  static constexpr int kBlockRows = kBlockWarpgroups * kTilesOfWarp * kWarpgroupRows;
  static constexpr int kTokens = kTokenCount;
  static constexpr int kTokenTiles = kTokens / 8;
  static constexpr int kProducts = kTokens / kProductTokens;  // side by side
  static constexpr bool kQuantized = true;
  static constexpr int kStageBytes = kTokens * kSwizzledRowBytes;
  // Levels of the tree that wait in registers.
  static constexpr int kRegisterLevels = kTilesOfWarp == 2 ? 0 : 1;

  static constexpr int kLevelFloats = kBlockRows * kTokens;
  static constexpr int SharedLevels(int block_leaves) {
    const int levels = Log2(block_leaves) - kRegisterLevels;
    return levels > 0 ? levels : 0;
  }
  // In this order: stages, barriers, levels, the tokens' scales.
  static constexpr int kBarriers = kStages * kStageBytes;
  static constexpr int kLevels = kBarriers + 2 * kStages * Mbarrier::kBytes;
  static constexpr int SharedBytes(int block_leaves) {
    return kLevels + (SharedLevels(block_leaves) * kLevelFloats + block_leaves * kTokens) *
                         static_cast<int>(sizeof(float));
  }
};

// The stages of activations, one after the other: each is filled by the copy engine, read by all
// warps that sum, and given back by them.
template <typename S>
class Stages {
 public:
  MARCORO_DEVICE int Offset() const { return slot_ * S::kStageBytes; }
  MARCORO_DEVICE Mbarrier Filled() const { return Mbarrier(S::kBarriers + slot_ * kPairBytes); }
  MARCORO_DEVICE Mbarrier Free() const {
    return Mbarrier(S::kBarriers + slot_ * kPairBytes + Mbarrier::kBytes);
  }
  // Of Filled's phase that this turn ends.
  MARCORO_DEVICE uint32_t Parity() const { return parity_; }
  MARCORO_DEVICE void Advance() {
    if (++slot_ < kStages) return;
    slot_ = 0;
    parity_ ^= 1u;
  }

  // By one thread, for all.
  MARCORO_DEVICE static void Initialize() {
    Stages stages;
    for (int i = 0; i < kStages; ++i) {
      stages.Filled().Initialize(1);
      stages.Free().Initialize(kSummingWarps);
      stages.Advance();
    }
    PublishMbarriers();
  }

 private:
  static constexpr int kPairBytes = 2 * Mbarrier::kBytes;

  int slot_ = 0;
  uint32_t parity_ = 0;
};

MARCORO_DEVICE int LeafStages(const MatmulLayout& layout) {
  return (layout.leaf_steps + kStageSteps - 1) / kStageSteps;
}

// One thread: asks for all stages of the block's leaves. What a leaf's last stage has beyond the
// leaf (the next one's columns, or zeros) is multiplied by zeros: no code is NaN.
template <typename S>
MARCORO_DEVICE void CopyActivations(const MatmulOperands& operands, const TensorMap& x) {
  const MatmulLayout& layout = operands.weight.layout;
  const int first_token = BlockIndexX() * S::kTokens;
  const int first_leaf = BlockIndexZ() * operands.block_leaves;
  Stages<S> stages;
  for (int leaf = first_leaf; leaf < first_leaf + operands.block_leaves; ++leaf) {
    for (int stage = 0; stage < LeafStages(layout); ++stage) {
      stages.Free().Wait(stages.Parity() ^ 1u);  // at once in the first round
      const Mbarrier filled = stages.Filled();
      filled.ArriveAndExpect(S::kStageBytes);
      CopyTensor(SharedMemory() + stages.Offset(), x, first_token,
                 leaf * layout.leaf_columns + stage * kStageColumns, filled);
      stages.Advance();
    }
  }
}

// A warp's weights of a stage, on their way to registers one stage ahead.
template <typename S>
class CodeStage {
 public:
  MARCORO_DEVICE CodeStage(const MatmulOperands& operands, int first_row)
      : leaf_steps_(operands.weight.layout.leaf_steps),
        leaves_left_(operands.block_leaves),
        tile_jump_(operands.weight.layout.tile_bytes * (S::kTileJump / kTileRows)) {
    const MatmulLayout& layout = operands.weight.layout;
    const int first_tile = first_row / kTileRows;
    from_ = operands.weight.tiles + first_tile * layout.tile_bytes +
            BlockIndexZ() * operands.block_leaves * layout.leaf_bytes;
    tiles_ = layout.tiles - first_tile;
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) LoadNext(tile);
    Advance();
  }

  // The stage's weights of a tile; begins to load the next stage's.
  MARCORO_DEVICE void Take(int tile, StepWeights<S::kWeight> (&weights)[kStageSteps]) {
    MARCORO_UNROLL_LOOP
    for (int step = 0; step < kStageSteps; ++step) weights[step] = next_[tile][step];
    LoadNext(tile);
  }
  // Those of all tiles have been taken.
  MARCORO_DEVICE void Advance() {
    const int left = leaf_steps_ - first_step_;
    from_ += (left < kStageSteps ? left : kStageSteps) * StepBytes(S::kWeight);
    first_step_ += kStageSteps;
    if (first_step_ < leaf_steps_) return;
    first_step_ = 0;
    --leaves_left_;
  }

 private:
  // Zeros for steps, tiles and leaves that there are not.
  MARCORO_DEVICE void LoadNext(int tile) {
    const bool has_tile = leaves_left_ > 0 && tile * (S::kTileJump / kTileRows) < tiles_;
    MARCORO_UNROLL_LOOP
    for (int step = 0; step < kStageSteps; ++step) {
      next_[tile][step] = {};
      if (has_tile && first_step_ + step < leaf_steps_) {
        next_[tile][step].Load(from_ + tile * tile_jump_ + step * StepBytes(S::kWeight));
      }
    }
  }

  int leaf_steps_;
  int leaves_left_;
  int64_t tile_jump_;
  int tiles_;  // from the warp's first one on
  // Of the next stage.
  const char* from_;
  int first_step_ = 0;
  StepWeights<S::kWeight> next_[S::kTilesOfWarp][kStageSteps];
};

// What a warp that sums works with.
template <typename S>
struct Summing {
  CodeStage<S> weights;
  Stages<S> stages;

  // sums += the product of the stage.
  MARCORO_DEVICE void MultiplyStage(WarpSums<S>& sums) {
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
      StepWeights<S::kWeight> a[kStageSteps];
      weights.Take(tile, a);
      MARCORO_UNROLL_LOOP
      for (int i = 0; i < S::kProducts; ++i) {
        float product[kProductTokens / 2];
        MultiplyStage(a, i, product);
        AddProduct(product, tile, i, sums);
      }
    }
    weights.Advance();
  }

 private:
  MARCORO_DEVICE void MultiplyStage(const StepWeights<S::kWeight> (&a)[kStageSteps], int i,
                                    float (&product)[kProductTokens / 2]) const {
    FenceWarpgroupMatrix(product);
    MARCORO_UNROLL_LOOP
    for (int step = 0; step < kStageSteps; ++step) {
      const uint64_t b =
          MatrixDescriptor(SharedMemory() + stages.Offset() +
                           i * kProductTokens * kSwizzledRowBytes + step * kStepColumns);
      MultiplyWarpgroupCodes(product, a[step].words[0].word, b, /*accumulate=*/step > 0);
    }
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<0>(product);
  }

  MARCORO_DEVICE static void AddProduct(const float (&product)[kProductTokens / 2], int tile, int i,
                                        WarpSums<S>& sums) {
    const int first = WarpSums<S>::Fragment(tile, i * (kProductTokens / 8));
    MARCORO_UNROLL_LOOP
    for (int e = 0; e < kProductTokens / 2; ++e) {
      float& sum = sums.c[first + e / 4][e % 4];
      sum = Add(sum, product[e]);
    }
  }
};

// sums = the product of the next leaf.
template <typename S>
MARCORO_DEVICE void MultiplyLeaf(const MatmulLayout& layout, Summing<S>& with, WarpSums<S>& sums) {
  sums.Clear();
  for (int stage = 0; stage < LeafStages(layout); ++stage) {
    with.stages.Filled().Wait(with.stages.Parity());
    with.MultiplyStage(sums);
    if (Lane() == 0) with.stages.Free().Arrive();
    with.stages.Advance();
  }
}

template <typename S>
MARCORO_KERNEL(kThreads, 1)
ManyCodesKernel(MatmulOperands operands, const MARCORO_GRID_CONSTANT TensorMap x) {
  if (!CompiledForWarpgroups()) return;  // never launched there, and registers are too few for it
  if (ThreadIndex() == 0) Stages<S>::Initialize();
  LaunchDependents();
  WaitForKernelAhead();
  const int first_row = BlockIndexY() * S::kBlockRows +
                        Warp() / kWarpgroupWarps * (S::kBlockRows / kBlockWarpgroups) +
                        Warp() % kWarpgroupWarps * kTileRows;
  const SumsTree<S> tree(operands, first_row, S::kLevels);  // all threads bring tokens' scales
  SyncBlock();
  if (Warp() < kSummingWarps) {
    TakeRegisters<kSummingRegisters>();
    Summing<S> with = {.weights = CodeStage<S>(operands, first_row), .stages = {}};
    WarpSums<S> sums;
    SumLeaves(operands, tree, sums,
              [&](WarpSums<S>& leaf) { MultiplyLeaf(operands.weight.layout, with, leaf); });
    WriteSums(operands, sums, first_row);
  } else {
    GiveRegisters<kCopyingRegisters>();
    if (Warp() == kSummingWarps && Lane() == 0) CopyActivations<S>(operands, x);
  }
}

template <typename S>
void LaunchShapeOf(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands) {
  const MatmulLayout& layout = operands.weight.layout;
  TensorMap x;
  MARCORO_CHECK(EncodeTensorMap({.data = operands.x.data,
                                 .element_bytes = 1,
                                 .rows = operands.x.tokens,
                                 .columns = layout.leaves * int64_t{layout.leaf_columns},
                                 .stride_bytes = operands.x.stride,
                                 .box_rows = S::kTokens,
                                 .box_columns = kStageColumns,
                                 .swizzled = true},
                                &x));
  const LaunchShape shape = {.grid_x = (operands.x.tokens + S::kTokens - 1) / S::kTokens,
                             .grid_y = (layout.rows + S::kBlockRows - 1) / S::kBlockRows,
                             .grid_z = plan.parts,
                             .threads = kThreads,
                             .shared_bytes = S::SharedBytes(plan.block_leaves),
                             .overlaps_kernel_ahead = true};
  Launch(stream, shape, ManyCodesKernel<S>, operands, x);
}

// function(Shape) of the plan.
template <typename Function>
auto ForShape(const MatmulPlan& plan, const Function& function) {
  if (plan.token_tiles == 8) return function(Shape<1, 64>());
  if (plan.warpgroup_tiles == 1) return function(Shape<1, 128>());
  return function(Shape<2, 128>());
}

}  // namespace

int ManyCodesSharedBytes(const MatmulPlan& plan) {
  return ForShape(plan,
                  [&](auto shape) { return decltype(shape)::SharedBytes(plan.block_leaves); });
}

void MultiplyManyCodes(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands) {
  ForShape(plan, [&](auto shape) { LaunchShapeOf<decltype(shape)>(stream, plan, operands); });
}

}  // namespace marcoro::cuda
