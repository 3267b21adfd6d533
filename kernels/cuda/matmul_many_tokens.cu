// The product of many tokens: the time is that of the tensor cores.
//
// A block computes 32 rows per warp times 64 or 128 tokens. All warps lie along the rows, so that
// each weight is unpacked once in a block, by the warp that copied it; activations are shared. Both
// come in stages of 64 columns (32 of BF16 weights) by asynchronous copies. Neighbouring blocks
// have the same rows and other tokens: weights come from memory once, from the second-level cache
// after.
//
// For a step of 32 columns and 128 tokens a warp issues 64 matrix products, 16 loads of B, 2 of A
// and 56 operations to unpack; shared memory delivers 8 KB to it, 62 % of what it can while
// mma.sync runs at the best rate seen on Hopper (0.6 of wgmma's). Rows of a stage are swizzled in
// units of 16 bytes: eight rows of a matrix load lie in 32 banks.
//
// Leaves are folded like a binary counter. With 64 tokens the lowest level waits in registers; the
// others, and all with 128 tokens, wait in shared memory, each thread's sums in its own place: 64
// or 128 KB a level. For two leaves of 2048 columns that adds 3 % to shared memory's traffic, for
// eight of 512 (with 64 tokens) 8 %.
//
// With activations of E4M3 a stage has 128 columns: the sum of its products begins at zero in
// registers and is then added to the leaf's, 4 additions for 4 products of 32 columns. Weights are
// fragments already. Two stages, one of them under way: 40 or 48 KB, while the other one's products
// take 1000 cycles or more; a third would leave no room for the tree.
#include "kernels/check.h"
#include "kernels/cuda/device/async_copy.h"
#include "kernels/cuda/matmul_fragments.h"
#include "kernels/cuda/matmul_kernels.h"
#include "kernels/cuda/matmul_sums.h"

namespace marcoro::cuda {
namespace {

constexpr int kMostThreads = kMostManyWarps * kWarpThreads;

// What follows from the types and sizes.
template <DType kWeightType, DType kActivationType, int kTokenTileCount>
struct Shape {
  using Types = MatmulTypes<kWeightType, kActivationType>;
  using Activation = typename Types::Activation;
  static constexpr DType kWeight = kWeightType;
  static constexpr bool kQuantized = Types::kQuantized;
  static constexpr int kTilesOfWarp = kWarpRows / kTileRows;
  static constexpr int kTileJump = kTileRows;
  static constexpr int kTokenTiles = kTokenTileCount;
  static constexpr int kTokens = kTokenTiles * 8;
  static constexpr int kStageSteps = kQuantized                  ? kPromotedSteps
                                     : kWeight == DType::kF8E4M3 ? 2
                                                                 : 1;
  static constexpr int kStageColumns = kStageSteps * kStepColumns;
  static constexpr int kUnitColumns = 16 / Types::kActivationBytes;
  static constexpr int kUnits = kStageColumns / kUnitColumns;  // of a token in a stage
  static constexpr int kStages = kQuantized ? 2 : kTokenTiles == 8 ? 4 : 3;
  static constexpr int kWarpStageBytes = kTilesOfWarp * kStageSteps * StepBytes(kWeight);
  static constexpr int kTokenBytes = kStageColumns * Types::kActivationBytes;
  static constexpr int kTokenStageBytes = kTokens * kTokenBytes;
  // Levels of the tree that wait in registers.
  static constexpr int kRegisterLevels = kTokenTiles == 8 ? 1 : 0;

  static constexpr int StageBytes(int warps) { return warps * kWarpStageBytes + kTokenStageBytes; }
  // Floats of a level that waits in shared memory, sized for the largest block: blocks that have
  // levels are.
  static constexpr int kLevelFloats = kMostManyWarps * kWarpRows * kTokens;
  static constexpr int SharedLevels(int block_leaves) {
    const int levels = Log2(block_leaves) - kRegisterLevels;
    return levels > 0 ? levels : 0;
  }
  static constexpr int SharedBytes(int warps, int block_leaves) {
    return kStages * StageBytes(warps) +
           (SharedLevels(block_leaves) * kLevelFloats + (kQuantized ? block_leaves * kTokens : 0)) *
               static_cast<int>(sizeof(float));
  }
};

// Copies a block's operands, stage by stage.
template <typename S>
class StageCopies {
 public:
  MARCORO_DEVICE StageCopies(const MatmulOperands& operands)
      : operands_(operands),
        warps_(BlockThreads() / kWarpThreads),
        memory_(0, S::kStages * S::StageBytes(warps_)),
        leaf_stages_((operands.weight.layout.leaf_steps + S::kStageSteps - 1) / S::kStageSteps),
        first_leaf_(BlockIndexZ() * operands.block_leaves),
        first_token_(BlockIndexX() * S::kTokens),
        first_tile_((BlockIndexY() * warps_ + Warp()) * S::kTilesOfWarp),
        token_(ThreadIndex() / S::kUnits),
        unit_(ThreadIndex() % S::kUnits),
        token_jump_(BlockThreads() / S::kUnits) {}

  MARCORO_DEVICE const SharedArray<char>& memory() const { return memory_; }
  MARCORO_DEVICE int leaf_stages() const { return leaf_stages_; }
  MARCORO_DEVICE int first_tile() const { return first_tile_; }
  MARCORO_DEVICE int WarpOffset(int slot) const {
    return slot * S::StageBytes(warps_) + Warp() * S::kWarpStageBytes;
  }
  MARCORO_DEVICE int TokenOffset(int slot) const {
    return slot * S::StageBytes(warps_) + warps_ * S::kWarpStageBytes;
  }
  // Where a token's unit lies among those of a stage.
  MARCORO_DEVICE static int Unit(int token, int unit) {
    const int swizzle = S::kUnits == 8 ? token % 8 : token / 2 % 4;
    return token * S::kUnits + (unit ^ swizzle);
  }

  // Begins to copy the next stage, if there is one.
  MARCORO_DEVICE void CopyStage() {
    if (leaf_ < operands_.block_leaves) {
      CopyWeights();
      if (operands_.x.vectors) {
        CopyActivations();
      } else {
        StoreActivations();
      }
    }
    CommitCopies();
    slot_ = slot_ + 1 == S::kStages ? 0 : slot_ + 1;
    if (++stage_ < leaf_stages_) return;
    stage_ = 0;
    ++leaf_;
  }

 private:
  MARCORO_DEVICE void CopyWeights() {
    const MatmulLayout& layout = operands_.weight.layout;
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < S::kTilesOfWarp; ++i) {
      if (first_tile_ + i >= layout.tiles) break;
      const char* leaf = operands_.weight.tiles + (first_tile_ + i) * layout.tile_bytes +
                         (first_leaf_ + leaf_) * layout.leaf_bytes;
      MARCORO_UNROLL_LOOP
      for (int step = 0; step < S::kStageSteps; ++step) {
        const int leaf_step = stage_ * S::kStageSteps + step;
        if (leaf_step >= layout.leaf_steps) break;
        MARCORO_UNROLL_LOOP
        for (int offset = 0; offset < StepBytes(S::kWeight); offset += kWarpThreads * 16) {
          const int mine = offset + Lane() * 16;
          CopyAsync16(memory_.Address(WarpOffset(slot_) +
                                      (i * S::kStageSteps + step) * StepBytes(S::kWeight) + mine),
                      leaf + leaf_step * StepBytes(S::kWeight) + mine);
        }
      }
    }
  }

  // A thread copies the same unit of every token_jump_-th token. These are a multiple of 8 apart,
  // so that their places have one swizzle.
  MARCORO_DEVICE void CopyActivations() {
    const ActivationView& x = operands_.x;
    const bool has_columns = unit_ * S::kUnitColumns < ColumnsLeft();
    const auto* from = ActivationsFrom();
    int to = TokenOffset(slot_) + Unit(token_, unit_) * 16;
    for (int token = token_; token < S::kTokens; token += token_jump_) {
      const bool valid = has_columns && first_token_ + token < x.tokens;
      CopyAsync16(memory_.Address(to), valid ? from : x.data, valid);
      from += token_jump_ * x.stride;
      to += token_jump_ * S::kTokenBytes;
    }
  }
  // The same of rows that are not aligned.
  MARCORO_DEVICE void StoreActivations() {
    const auto* from = ActivationsFrom();
    for (int token = token_; token < S::kTokens; token += token_jump_) {
      const bool valid = first_token_ + token < operands_.x.tokens;
      memory_.StoreAs(TokenOffset(slot_) + Unit(token, unit_) * 16,
                      LoadUnit(from, valid ? ColumnsLeft() - unit_ * S::kUnitColumns : 0,
                               /*vectors=*/false));
      from += token_jump_ * operands_.x.stride;
    }
  }
  // The thread's unit of its first token.
  MARCORO_DEVICE const typename S::Activation* ActivationsFrom() const {
    return static_cast<const typename S::Activation*>(operands_.x.data) +
           (first_token_ + token_) * operands_.x.stride +
           static_cast<int64_t>(first_leaf_ + leaf_) * operands_.weight.layout.leaf_columns +
           stage_ * S::kStageColumns + unit_ * S::kUnitColumns;
  }
  MARCORO_DEVICE int ColumnsLeft() const {
    return operands_.weight.layout.leaf_columns - stage_ * S::kStageColumns;
  }

  const MatmulOperands& operands_;
  int warps_;
  SharedArray<char> memory_;
  int leaf_stages_;
  int first_leaf_;
  int first_token_;
  int first_tile_;
  int token_;
  int unit_;
  int token_jump_;
  // Of the next copy.
  int slot_ = 0;
  int leaf_ = 0;
  int stage_ = 0;
};

// sums += the product of the first `steps` steps of a stage.
template <typename S>
MARCORO_DEVICE void MultiplyStage(const StageCopies<S>& copies, int slot, int steps,
                                  WarpSums<S>& sums) {
  const SharedArray<char>& memory = copies.memory();
  const int tokens = copies.TokenOffset(slot);
  MARCORO_UNROLL_LOOP
  for (int step = 0; step < S::kStageSteps; ++step) {
    if (step >= steps) break;
    uint32_t a[S::kTilesOfWarp][2][4];
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
      StepWeights<S::kWeight> weights;
      weights.Load(
          memory, copies.WarpOffset(slot) + (tile * S::kStageSteps + step) * StepBytes(S::kWeight));
      weights.Unpack(a[tile]);
    }
    // Tiles of tokens have the same swizzle: one address and constant offsets.
    const int mine = tokens + copies.Unit(Lane() % 8, step * 4 + Lane() / 8) * 16;
    // Two tiles of tokens at once: four independent sums, each of which waits for its last product.
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < S::kTokenTiles; i += 2) {
      uint32_t b[2][4];
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 2; ++j) {
        LoadMatrices(b[j], memory.Address(mine + (i + j) * 8 * S::kTokenBytes));
      }
      MARCORO_UNROLL_LOOP
      for (int k = 0; k < 2; ++k) {
        MARCORO_UNROLL_LOOP
        for (int j = 0; j < 2; ++j) {
          const uint32_t half[2] = {b[j][2 * k], b[j][2 * k + 1]};
          MARCORO_UNROLL_LOOP
          for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
            MultiplyMatrix(sums.c[WarpSums<S>::Fragment(tile, i + j)], a[tile][k], half);
          }
        }
      }
    }
  }
}

// The same of codes: the stage's sum begins at zero.
template <typename S>
MARCORO_DEVICE void MultiplyCodeStage(const StageCopies<S>& copies, int slot, int steps,
                                      WarpSums<S>& sums) {
  // Tiles of tokens, each of which makes two independent sums. Registers, beside a level of the
  // tree, are too few for two of them.
  constexpr int kAtOnce = S::kRegisterLevels > 0 ? 1 : 2;
  const SharedArray<char>& memory = copies.memory();
  const int tokens = copies.TokenOffset(slot);
  StepWeights<S::kWeight> a[S::kTilesOfWarp][S::kStageSteps];
  MARCORO_UNROLL_LOOP
  for (int step = 0; step < S::kStageSteps; ++step) {
    if (step >= steps) break;
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
      a[tile][step].Load(
          memory, copies.WarpOffset(slot) + (tile * S::kStageSteps + step) * StepBytes(S::kWeight));
    }
  }
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < S::kTokenTiles; i += kAtOnce) {
    float stage[S::kTilesOfWarp][kAtOnce][4] = {};
    MARCORO_UNROLL_LOOP
    for (int pair = 0; pair < S::kStageSteps; pair += 2) {  // of steps, that one load brings
      const int mine = tokens + copies.Unit(Lane() % 8, pair * 2 + Lane() / 8) * 16;
      uint32_t b[kAtOnce][4];
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < kAtOnce; ++j) {
        LoadMatrices(b[j], memory.Address(mine + (i + j) * 8 * S::kTokenBytes));
      }
      MARCORO_UNROLL_LOOP
      for (int k = 0; k < 2; ++k) {
        if (pair + k >= steps) break;
        MARCORO_UNROLL_LOOP
        for (int j = 0; j < kAtOnce; ++j) {
          const uint32_t half[2] = {b[j][2 * k], b[j][2 * k + 1]};
          MARCORO_UNROLL_LOOP
          for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
            MultiplyCodeMatrix(stage[tile][j], a[tile][pair + k].words[0].word, half);
          }
        }
      }
    }
    MARCORO_UNROLL_LOOP
    for (int j = 0; j < kAtOnce; ++j) {
      MARCORO_UNROLL_LOOP
      for (int tile = 0; tile < S::kTilesOfWarp; ++tile) {
        float(&sum)[4] = sums.c[WarpSums<S>::Fragment(tile, i + j)];
        MARCORO_UNROLL_LOOP
        for (int e = 0; e < 4; ++e) sum[e] = Add(sum[e], stage[tile][j][e]);
      }
    }
  }
}

// sums = the product of the next leaf, whose first stage lies in `slot`.
template <typename S>
MARCORO_DEVICE void MultiplyLeaf(const MatmulLayout& layout, StageCopies<S>& copies, int& slot,
                                 WarpSums<S>& sums) {
  sums.Clear();
  for (int stage = 0; stage < copies.leaf_stages(); ++stage) {
    WaitCopies<S::kStages - 2>();
    SyncBlock();  // all have their copies, and are done with the stage that is copied over now
    copies.CopyStage();
    if (copies.first_tile() < layout.tiles) {
      const int steps = layout.leaf_steps - stage * S::kStageSteps;
      if constexpr (S::kQuantized) {
        MultiplyCodeStage(copies, slot, steps, sums);
      } else {
        MultiplyStage(copies, slot, steps, sums);
      }
    }
    slot = slot + 1 == S::kStages ? 0 : slot + 1;
  }
}

template <typename S>
MARCORO_KERNEL(kMostThreads, 1)
ManyTokensKernel(MatmulOperands operands) {
  const MatmulLayout& layout = operands.weight.layout;
  StageCopies<S> copies(operands);
  for (int i = 0; i < S::kStages - 1; ++i) copies.CopyStage();
  const int first_row = copies.first_tile() * kTileRows;
  const SumsTree<S> tree(operands, first_row,
                         S::kStages * S::StageBytes(BlockThreads() / kWarpThreads));
  WarpSums<S> sums;
  int slot = 0;
  SumLeaves(operands, tree, sums,
            [&](WarpSums<S>& leaf) { MultiplyLeaf(layout, copies, slot, leaf); });
  WaitCopies<0>();
  WriteSums(operands, sums, first_row);
}

template <typename S>
void LaunchShapeOf(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands) {
  const int block_rows = plan.warps * kWarpRows;
  const LaunchShape shape = {.grid_x = (operands.x.tokens + S::kTokens - 1) / S::kTokens,
                             .grid_y = (operands.weight.layout.rows + block_rows - 1) / block_rows,
                             .grid_z = plan.parts,
                             .threads = plan.warps * kWarpThreads,
                             .shared_bytes = S::SharedBytes(plan.warps, plan.block_leaves)};
  Launch(stream, shape, ManyTokensKernel<S>, operands);
}

// function(Shape) of the weights' type and the plan.
template <DType kWeight, DType kActivation, typename Function>
auto ForTokenTiles(int token_tiles, const Function& function) {
  if (token_tiles == 8) return function(Shape<kWeight, kActivation, 8>());
  return function(Shape<kWeight, kActivation, 16>());
}
template <typename Function>
auto ForShape(DType weight, const MatmulPlan& plan, const Function& function) {
  if (weight == DType::kBF16) {
    return ForTokenTiles<DType::kBF16, DType::kBF16>(plan.token_tiles, function);
  }
  if (plan.activations == DType::kBF16) {
    return ForTokenTiles<DType::kF8E4M3, DType::kBF16>(plan.token_tiles, function);
  }
  return ForTokenTiles<DType::kF8E4M3, DType::kF8E4M3>(plan.token_tiles, function);
}

}  // namespace

int ManyTokensSharedBytes(DType dtype, const MatmulPlan& plan) {
  return ForShape(dtype, plan, [&](auto shape) {
    return decltype(shape)::SharedBytes(plan.warps, plan.block_leaves);
  });
}

void MultiplyManyTokens(Stream stream, const MatmulPlan& plan, DType dtype,
                        const MatmulOperands& operands) {
  MARCORO_CHECK(plan.token_tiles == 8 || plan.token_tiles == 16);
  ForShape(dtype, plan,
           [&](auto shape) { LaunchShapeOf<decltype(shape)>(stream, plan, operands); });
}

}  // namespace marcoro::cuda
