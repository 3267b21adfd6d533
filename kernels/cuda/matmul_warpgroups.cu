// The product of many tokens on GPUs whose tensor cores multiply for warpgroups (wgmma, sm_90a).
// Used where a probe found the bits of mma.sync (matmul_probe.cc): the same packed weights, leaves
// and tree, each leaf one chain of products of 16 columns.
//
// Two warpgroups multiply, a third has the copy engine bring activations, swizzled, to shared
// memory, stages of 16 or 32 KB, each announced by one mbarrier and given back by another. Weights
// go from memory to registers, a stage ahead of their use: they are packed as A's fragments, 512
// neighbouring bytes a warp, so that shared memory is left to B. While one product of 16 columns
// runs, the next one's weights are unpacked; while one warpgroup folds, the other multiplies.
//
// A block has 256 rows and 128 tokens (two products of 64 rows a warpgroup), or 128 rows where the
// tree is deeper than one level: half of the sums wait in registers then. For 16 columns of the
// large block the tensor cores need 256 cycles. Meanwhile: shared memory delivers B four times (128
// cycles) and takes 4 KB (32); the four schedulers have 256 slots each for about 2 x 50
// instructions; the second-level cache delivers 8 KB (32 bytes a cycle, of some 40). The small
// block needs 6 KB in 128 cycles: it is the second-level cache that limits it.
#include "kernels/check.h"
#include "kernels/cuda/device/architecture.h"
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/register_share.h"
#include "kernels/cuda/device/tensor_map.h"
#include "kernels/cuda/device/warpgroup_matrix.h"
#include "kernels/cuda/matmul_fragments.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/matmul_sums.h"

namespace marcoro::cuda {
namespace {

constexpr int kWarpgroupWarps = 4;
constexpr int kSummingWarps = kBlockWarpgroups * kWarpgroupWarps;
constexpr int kThreads = (kSummingWarps + kWarpgroupWarps) * kWarpThreads;
// Of a thread that sums and of one that copies: of 65536 in all.
constexpr int kSummingRegisters = 240;
constexpr int kCopyingRegisters = 24;
static_assert(kSummingWarps == kMostManyWarps);
// Columns of B that lie in a swizzled row.
constexpr int kPanelColumns = kSwizzledRowBytes / 2;

template <DType kWeightType, int kTileCount>
struct Shape {
  static constexpr DType kWeight = kWeightType;
  static constexpr int kTilesOfWarp = kTileCount;
  static constexpr int kTileJump = kWarpgroupRows;
  static constexpr int kBlockRows = kBlockWarpgroups * kTilesOfWarp * kWarpgroupRows;
  static constexpr int kTokens = kWarpgroupTokens;
  static constexpr int kTokenTiles = kTokens / 8;
  static constexpr bool kQuantized = false;
  static constexpr int kStageSteps = kTilesOfWarp == 2 ? 2 : 4;
  static constexpr int kStageColumns = kStageSteps * kStepColumns;
  static constexpr int kPanels = kStageColumns / kPanelColumns;
  static constexpr int kPanelBytes = kTokens * kSwizzledRowBytes;
  static constexpr int kStageBytes = kPanels * kPanelBytes;
  static constexpr int kStages = kTilesOfWarp == 2 ? 5 : 3;
  // Levels of the tree that wait in registers.
  static constexpr int kRegisterLevels = kTilesOfWarp == 2 ? 0 : 1;

  static constexpr int kLevelFloats = kBlockRows * kTokens;
  static constexpr int SharedLevels(int block_leaves) {
    const int levels = Log2(block_leaves) - kRegisterLevels;
    return levels > 0 ? levels : 0;
  }
  // In this order: stages, barriers, levels.
  static constexpr int kBarriers = kStages * kStageBytes;
  static constexpr int kLevels = kBarriers + 2 * kStages * Mbarrier::kBytes;
  static constexpr int SharedBytes(int block_leaves) {
    return kLevels + SharedLevels(block_leaves) * kLevelFloats * static_cast<int>(sizeof(float));
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
    if (++slot_ < S::kStages) return;
    slot_ = 0;
    parity_ ^= 1u;
  }

  // By one thread, for all.
  MARCORO_DEVICE static void Initialize() {
    Stages stages;
    for (int i = 0; i < S::kStages; ++i) {
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

template <typename S>
MARCORO_DEVICE int LeafStages(const MatmulLayout& layout) {
  return (layout.leaf_steps + S::kStageSteps - 1) / S::kStageSteps;
}

// One thread: asks for all stages of the block's leaves. What a leaf's last stage has beyond the
// leaf is never multiplied.
template <typename S>
MARCORO_DEVICE void CopyActivations(const MatmulOperands& operands, const TensorMap& x) {
  const MatmulLayout& layout = operands.weight.layout;
  const int first_token = BlockIndexX() * S::kTokens;
  const int first_leaf = BlockIndexZ() * operands.block_leaves;
  Stages<S> stages;
  for (int leaf = first_leaf; leaf < first_leaf + operands.block_leaves; ++leaf) {
    for (int stage = 0; stage < LeafStages<S>(layout); ++stage) {
      stages.Free().Wait(stages.Parity() ^ 1u);  // at once in the first round
      const Mbarrier filled = stages.Filled();
      filled.ArriveAndExpect(S::kStageBytes);
      const int column = leaf * layout.leaf_columns + stage * S::kStageColumns;
      MARCORO_UNROLL_LOOP
      for (int panel = 0; panel < S::kPanels; ++panel) {
        CopyTensor(SharedMemory() + stages.Offset() + panel * S::kPanelBytes, x, first_token,
                   column + panel * kPanelColumns, filled);
      }
      stages.Advance();
    }
  }
}

// A warp's weights of a stage in registers; each step makes room for that of the next stage.
template <typename S>
class WeightStage {
 public:
  MARCORO_DEVICE WeightStage(const MatmulOperands& operands, int first_row)
      : leaf_steps_(operands.weight.layout.leaf_steps),
        leaves_left_(operands.block_leaves),
        tile_jump_(operands.weight.layout.tile_bytes * (S::kTileJump / kTileRows)) {
    const MatmulLayout& layout = operands.weight.layout;
    const int first_tile = first_row / kTileRows;
    from_ = operands.weight.tiles + first_tile * layout.tile_bytes +
            BlockIndexZ() * operands.block_leaves * layout.leaf_bytes;
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
      has_tile_[tile] = first_tile + tile * (S::kTileJump / kTileRows) < layout.tiles;
    }
    MARCORO_UNROLL_LOOP
    for (int step = 0; step < S::kStageSteps; ++step) LoadNext(step);
    Advance();
  }

  MARCORO_DEVICE void Unpack(int tile, int step, int k, uint32_t (&a)[4]) const {
    weights_[tile][step].Unpack(k, a);
  }
  // Begins to load the next stage's step.
  MARCORO_DEVICE void LoadNext(int step) {
    if (leaves_left_ == 0 || first_step_ + step >= leaf_steps_) return;
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
      if (has_tile_[tile]) {
        weights_[tile][step].Load(from_ + tile * tile_jump_ + step * StepBytes(S::kWeight));
      }
    }
  }
  // All steps of the next stage have been asked for.
  MARCORO_DEVICE void Advance() {
    const int left = leaf_steps_ - first_step_;
    from_ += (left < S::kStageSteps ? left : S::kStageSteps) * StepBytes(S::kWeight);
    first_step_ += S::kStageSteps;
    if (first_step_ < leaf_steps_) return;
    first_step_ = 0;
    --leaves_left_;
  }

 private:
  int leaf_steps_;
  int leaves_left_;
  int64_t tile_jump_;
  // Of the next stage.
  const char* from_;
  int first_step_ = 0;
  bool has_tile_[S::kTilesOfWarp];
  StepWeights<S::kWeight> weights_[S::kTilesOfWarp][S::kStageSteps] = {};
};

// All sums of a thread, and those of one product.
template <typename S>
MARCORO_DEVICE auto AllOf(WarpSums<S>& sums) -> float (&)[WarpSums<S>::kFragments * 4] {
  return reinterpret_cast<float(&)[WarpSums<S>::kFragments * 4]>(sums.c);
}
template <typename S>
MARCORO_DEVICE auto TileOf(WarpSums<S>& sums, int tile) -> float (&)[S::kTokenTiles * 4] {
  return reinterpret_cast<float(&)[S::kTokenTiles * 4]>(sums.c[WarpSums<S>::Fragment(tile, 0)]);
}

// What a warp that sums works with.
template <typename S>
struct Summing {
  WeightStage<S> weights;
  Stages<S> stages;
  // Two products' A, as one is under way while the next one's is unpacked.
  uint32_t a[2][S::kTilesOfWarp][4];

  // Starts the product of 16 columns and waits for the one before.
  MARCORO_DEVICE void Multiply(int step, int k, WarpSums<S>& sums) {
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) weights.Unpack(tile, step, k, a[k][tile]);
    const int column = step * kStepColumns + k * 16;
    const uint64_t b =
        MatrixDescriptor(SharedMemory() + stages.Offset() +
                         column / kPanelColumns * S::kPanelBytes + column % kPanelColumns * 2);
    FenceWarpgroupMatrix(AllOf(sums));
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
      MultiplyWarpgroupMatrix(TileOf(sums, tile), a[k][tile], b);
    }
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<1>(AllOf(sums));
  }
};

// sums = the product of the next leaf.
template <typename S>
MARCORO_DEVICE void MultiplyLeaf(const MatmulLayout& layout, Summing<S>& with, WarpSums<S>& sums) {
  sums.Clear();
  Stages<S> read = with.stages;
  for (int steps = layout.leaf_steps; steps > 0; steps -= S::kStageSteps) {
    with.stages.Filled().Wait(with.stages.Parity());
    MARCORO_UNROLL_LOOP
    for (int step = 0; step < S::kStageSteps; ++step) {
      if (step == 0 || step < steps) {
        with.Multiply(step, 0, sums);
        if (step == 0 && steps < layout.leaf_steps) {  // nobody reads the stage before any more
          if (Lane() == 0) read.Free().Arrive();
          read.Advance();
        }
        with.Multiply(step, 1, sums);
      }
      // BF16 weights are A's registers themselves, which are left alone while a product runs.
      if constexpr (S::kWeight == DType::kBF16) WaitWarpgroupMatrix<0>(AllOf(sums));
      with.weights.LoadNext(step);
    }
    with.weights.Advance();
    with.stages.Advance();
  }
  WaitWarpgroupMatrix<0>(AllOf(sums));
  if (Lane() == 0) read.Free().Arrive();
}

template <typename S>
MARCORO_DEVICE void SumBlock(const MatmulOperands& operands) {
  const int first_row = BlockIndexY() * S::kBlockRows +
                        Warp() / kWarpgroupWarps * (S::kBlockRows / kBlockWarpgroups) +
                        Warp() % kWarpgroupWarps * kTileRows;
  Summing<S> with = {.weights = WeightStage<S>(operands, first_row), .stages = {}, .a = {}};
  const SumsTree<S> tree(operands, first_row, S::kLevels);
  WaitForKernelAhead();  // it may read what is written here
  WarpSums<S> sums;
  SumLeaves(operands, tree, sums,
            [&](WarpSums<S>& leaf) { MultiplyLeaf(operands.weight.layout, with, leaf); });
  WriteSums(operands, sums, first_row);
}

template <typename S>
MARCORO_KERNEL(kThreads, 1)
WarpgroupsKernel(MatmulOperands operands, const MARCORO_GRID_CONSTANT TensorMap x) {
  if (ThreadIndex() == 0) Stages<S>::Initialize();
  SyncBlock();
  LaunchDependents();
  if (Warp() < kSummingWarps) {
    TakeRegisters<kSummingRegisters>();
    SumBlock<S>(operands);
  } else {
    GiveRegisters<kCopyingRegisters>();
    WaitForKernelAhead();
    if (Warp() == kSummingWarps && Lane() == 0) CopyActivations<S>(operands, x);
  }
}

MARCORO_KERNEL(kWarpThreads, 1) FindKernel(int* there) {
  if (ThreadIndex() == 0) *there = CompiledForWarpgroups() ? 1 : 0;
}

template <typename S>
void LaunchShapeOf(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands) {
  TensorMap x;
  MARCORO_CHECK(EncodeTensorMap(
      {.data = operands.x.data,
       .element_bytes = 2,
       .rows = operands.x.tokens,
       .columns = operands.weight.layout.leaves * int64_t{operands.weight.layout.leaf_columns},
       .stride_bytes = operands.x.stride * 2,
       .box_rows = S::kTokens,
       .box_columns = kPanelColumns,
       .swizzled = true},
      &x));
  const LaunchShape shape = {
      .grid_x = (operands.x.tokens + S::kTokens - 1) / S::kTokens,
      .grid_y = (operands.weight.layout.rows + S::kBlockRows - 1) / S::kBlockRows,
      .grid_z = plan.parts,
      .threads = kThreads,
      .shared_bytes = S::SharedBytes(plan.block_leaves),
      .overlaps_kernel_ahead = true};
  Launch(stream, shape, WarpgroupsKernel<S>, operands, x);
}

}  // namespace

int WarpgroupsSharedBytes(const MatmulPlan& plan) {
  // The type of the weights does not matter.
  return plan.warpgroup_tiles == 2 ? Shape<DType::kBF16, 2>::SharedBytes(plan.block_leaves)
                                   : Shape<DType::kBF16, 1>::SharedBytes(plan.block_leaves);
}

void FindWarpgroups(Stream stream, int* there) { Launch(stream, LaunchShape{}, FindKernel, there); }

void MultiplyByWarpgroups(Stream stream, const MatmulPlan& plan, DType dtype,
                          const MatmulOperands& operands) {
  MARCORO_CHECK(plan.warpgroup_tiles == 1 || plan.warpgroup_tiles == 2);
  MARCORO_CHECK(operands.x.vectors && operands.weight.layout.leaf_columns % kStepColumns == 0);
  if (dtype == DType::kF8E4M3) {
    if (plan.warpgroup_tiles == 1)
      return LaunchShapeOf<Shape<DType::kF8E4M3, 1>>(stream, plan, operands);
    return LaunchShapeOf<Shape<DType::kF8E4M3, 2>>(stream, plan, operands);
  }
  if (plan.warpgroup_tiles == 1)
    return LaunchShapeOf<Shape<DType::kBF16, 1>>(stream, plan, operands);
  return LaunchShapeOf<Shape<DType::kBF16, 2>>(stream, plan, operands);
}

}  // namespace marcoro::cuda
