// The product of at most 32 tokens: the time is that of reading the weights once.
//
// One block on each multiprocessor keeps its part of the activations in shared memory and walks
// over tiles of 16 rows. A warp has one leaf of a tile. It copies its weights to a ring in shared
// memory, 16 bytes a lane and 512 a warp, contiguous, and reads back only what its own lanes
// copied, so that the stream of weights needs no barrier and runs on while the block sums: three
// stages of up to 4 KB a warp are under way at any time (6 warps: 72 KB; 16 warps with stages of 2
// KB: 96 KB; needed: 26 KB). Registers could not hold as much, and six scoreboards could not tell
// it apart. A step of 512 bytes costs a warp about 45 instructions for up to 8 tokens; at full
// bandwidth a multiprocessor has 110 issue slots for it. (With activations of E4M3 fewer: nothing
// is unpacked.) When a tile's leaves are done, their sums go through shared memory in the order of
// the tree; that of the blocks of a cluster, where activations do not fit in one (sm_90 and newer).
//
// Bank conflicts: none for weights (contiguous) and activations (rows 16 bytes apart modulo 128);
// sums lie 20 floats apart, which puts a warp's stores in 32 banks.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/device/async_copy.h"
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/matmul_few_tokens.h"

namespace marcoro::cuda {
namespace {

// The weights of a warp: its leaf of one tile after the other, in stages.
template <DType kWeight>
class WeightRing {
 public:
  MARCORO_DEVICE WeightRing(const FewTokensWork& work, const BlockPlace& place, int slot, int leaf)
      : memory_(work.memory.ring, work.memory.end - work.memory.ring),
        tiles_(work.operands.weight.layout.tiles),
        leaf_steps_(work.operands.weight.layout.leaf_steps),
        stage_steps_(work.stage_steps),
        tile_(place.Tile(work, 0, slot)),
        tile_jump_(work.slots * place.groups),
        tile_bytes_(work.operands.weight.layout.tile_bytes),
        from_(work.operands.weight.tiles + tile_ * tile_bytes_ +
              (place.first_leaf + leaf) * work.operands.weight.layout.leaf_bytes),
        write_(Warp() * kRingStages * StageBytes()),
        first_(write_) {}

  // Begins to copy the next stage.
  MARCORO_DEVICE void CopyStage() {
    if (tile_ < tiles_) {
      const int steps = stage_steps_ < leaf_steps_ - step_ ? stage_steps_ : leaf_steps_ - step_;
      const char* from = from_ + step_ * StepBytes(kWeight);
      for (int offset = Lane() * 16; offset < steps * StepBytes(kWeight);
           offset += kWarpThreads * 16) {
        CopyAsync16(memory_.Address(write_ + offset), from + offset);
      }
    }
    CommitCopies();
    write_ = Next(write_);
    step_ += stage_steps_;
    if (step_ < leaf_steps_) return;
    step_ = 0;
    tile_ += tile_jump_;
    from_ += tile_jump_ * tile_bytes_;
  }

  MARCORO_DEVICE const SharedArray<char>& memory() const { return memory_; }
  MARCORO_DEVICE int first() const { return first_; }
  // Where the stage after the given one lies.
  MARCORO_DEVICE int Next(int stage) const {
    stage += StageBytes();
    return stage == first_ + kRingStages * StageBytes() ? first_ : stage;
  }

 private:
  MARCORO_DEVICE int StageBytes() const { return stage_steps_ * StepBytes(kWeight); }

  SharedArray<char> memory_;
  int tiles_;
  int leaf_steps_;
  int stage_steps_;
  int tile_;
  int tile_jump_;
  int64_t tile_bytes_;
  const char* from_;
  int write_;
  int first_;
  int step_ = 0;  // of the next copy, in its leaf
};

// Copies this block's leaves of all tokens to shared memory, each padded with zeros to whole steps.
template <typename Types>
MARCORO_DEVICE void StoreActivations(const FewTokensWork& work, const BlockPlace& place,
                                     const SharedArray<char>& memory) {
  constexpr int kUnitColumns = 16 / Types::kActivationBytes;
  const ActivationView& x = work.operands.x;
  const MatmulLayout& layout = work.operands.weight.layout;
  const int leaf_units = layout.leaf_steps * (kStepColumns / kUnitColumns);
  const int units = work.operands.block_leaves * leaf_units;
  const int first_column = place.first_leaf * layout.leaf_columns;
  for (int token = 0; token < x.tokens; ++token) {
    const auto* row =
        static_cast<const typename Types::Activation*>(x.data) + token * x.stride + first_column;
    for (int unit = ThreadIndex(); unit < units; unit += BlockThreads()) {
      const int leaf = unit / leaf_units;
      const int column = unit % leaf_units * kUnitColumns;
      memory.StoreAs(token * work.memory.token_bytes + unit * 16,
                     LoadUnit(row + static_cast<int64_t>(leaf) * layout.leaf_columns + column,
                              layout.leaf_columns - column, x.vectors));
    }
  }
  if (ThreadIndex() == 0) memory.StoreAs(work.memory.zeros, Words4{});
}

// Copies the tokens' scales of this block's segments to shared memory.
MARCORO_DEVICE SharedArray<float> StoreTokenScales(const FewTokensWork& work,
                                                   const BlockPlace& place) {
  const ActivationView& x = work.operands.x;
  const MatmulLayout& layout = work.operands.weight.layout;
  const int segments = BlockSegments(layout, work.operands.block_leaves);
  const int first = place.first_leaf >> layout.scale_level;
  const SharedArray<float> scales(work.memory.token_scales, x.tokens * segments);
  for (int i = ThreadIndex(); i < x.tokens * segments; i += BlockThreads()) {
    scales.Store(i, x.scales[i / segments * x.scale_stride + first + i % segments]);
  }
  return scales;
}

// Where a lane finds its rows of B: its token's activations, or zeros that stay where they are.
template <typename Types, int kTokenTiles>
struct ActivationCursor {
  static constexpr int kStepBytes = kStepColumns * Types::kActivationBytes;
  int offset[kTokenTiles];
  int step_bytes[kTokenTiles];

  MARCORO_DEVICE ActivationCursor(const FewTokensWork& work, int leaf) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kTokenTiles; ++i) {
      const int token = i * 8 + Lane() % 8;
      const bool valid = token < work.operands.x.tokens;
      step_bytes[i] = valid ? kStepBytes : 0;
      // Codes have two units of 16 bytes a step; the other lanes' addresses do not count.
      offset[i] = valid ? token * work.memory.token_bytes +
                              leaf * work.operands.weight.layout.leaf_steps * kStepBytes +
                              Lane() / 8 * 16 % kStepBytes
                        : work.memory.zeros;
    }
  }
};

// What a step needs, as it lies in shared memory: loaded one step ahead of its use.
template <typename Types, int kTokenTiles>
struct StepOperands {
  StepWeights<Types::kWeight> weights;
  uint32_t b[kTokenTiles][2 * Types::kActivationBytes];

  MARCORO_DEVICE void Load(const SharedArray<char>& ring, int step,
                           const SharedArray<char>& activations,
                           ActivationCursor<Types, kTokenTiles>& cursor) {
    weights.Load(ring, step);
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kTokenTiles; ++i) {
      LoadMatrices(b[i], activations.Address(cursor.offset[i]));
      cursor.offset[i] += cursor.step_bytes[i];
    }
  }

  MARCORO_DEVICE void Multiply(float (&sums)[kTokenTiles][4]) const {
    if constexpr (Types::kQuantized) {
      MARCORO_UNROLL_LOOP
      for (int i = 0; i < kTokenTiles; ++i) {
        MultiplyCodeMatrix(sums[i], weights.words[0].word, b[i]);
      }
    } else {
      uint32_t a[2][4];
      weights.Unpack(a);
      MARCORO_UNROLL_LOOP
      for (int k = 0; k < 2; ++k) {
        MARCORO_UNROLL_LOOP
        for (int i = 0; i < kTokenTiles; ++i) {
          const uint32_t half[2] = {b[i][2 * k], b[i][2 * k + 1]};
          MultiplyMatrix(sums[i], a[k], half);
        }
      }
    }
  }
};

// The sums of a leaf. Those of E4M3 activations come through sums of few steps.
template <typename Types, int kTokenTiles>
class LeafSums {
 public:
  using Sums = float[kTokenTiles][4];

  MARCORO_DEVICE void Multiply(const StepOperands<Types, kTokenTiles>& operands) {
    operands.Multiply(sums_);
    if constexpr (Types::kQuantized) {
      if (++steps_ == kPromotedSteps) Promote();
    }
  }
  // Those of all steps.
  MARCORO_DEVICE const Sums& Finish() {
    if constexpr (Types::kQuantized) {
      if (steps_ > 0) Promote();
      return promoted_;
    } else {
      return sums_;
    }
  }

 private:
  MARCORO_DEVICE void Promote() {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kTokenTiles; ++i) {
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 4; ++j) {
        promoted_[i][j] = Add(promoted_[i][j], sums_[i][j]);
        sums_[i][j] = 0;
      }
    }
    steps_ = 0;
  }

  Sums sums_ = {};
  Sums promoted_ = {};
  int steps_ = 0;  // in sums_ that are to be promoted
};

// sums += the product of the steps that begin at `step` in the ring.
template <typename Types, int kTokenTiles>
MARCORO_DEVICE void MultiplySteps(const SharedArray<char>& ring, int step, int steps,
                                  const SharedArray<char>& activations,
                                  ActivationCursor<Types, kTokenTiles>& cursor,
                                  LeafSums<Types, kTokenTiles>& sums) {
  StepOperands<Types, kTokenTiles> operands;
  operands.Load(ring, step, activations, cursor);
  for (int i = 1; i < steps; ++i) {
    StepOperands<Types, kTokenTiles> next;
    next.Load(ring, step + i * StepBytes(Types::kWeight), activations, cursor);
    sums.Multiply(operands);
    operands = next;
  }
  sums.Multiply(operands);
}

template <typename Types, int kTokenTiles>
MARCORO_KERNEL(kMostWarps* kWarpThreads, 1)
FewTokensKernel(FewTokensWork work) {
  LaunchDependents();
  const MatmulLayout& layout = work.operands.weight.layout;
  const BlockPlace place(work);
  const int slot = Warp() / work.operands.block_leaves;
  const int leaf = Warp() % work.operands.block_leaves;
  WeightRing<Types::kWeight> ring(work, place, slot, leaf);
  for (int i = 0; i < kRingStages - 1; ++i) ring.CopyStage();

  // Weights are under way while the kernel ahead ends: no kernel of a step writes them.
  WaitForKernelAhead();
  const SharedArray<char> activations(0, work.memory.zeros + 16);
  StoreActivations<Types>(work, place, activations);
  SharedArray<float> token_scales(0, 0);
  if constexpr (Types::kQuantized) token_scales = StoreTokenScales(work, place);
  SyncBlock();

  const SumsInMemory<kTokenTiles> memory(work, place, Types::kQuantized ? &token_scales : nullptr);
  const int iteration_tiles = work.slots * place.groups;
  int stage = ring.first();
  for (int iteration = 0; iteration * iteration_tiles < layout.tiles; ++iteration) {
    // Asked for early, looked at late.
    RawFactor factor;
    if (ThreadIndex() < work.slots * kTileRows) {
      factor.Load(work.operands.weight,
                  place.Tile(work, iteration, ThreadIndex() / kTileRows) * kTileRows +
                      ThreadIndex() % kTileRows);
    }
    const bool has_tile = place.Tile(work, iteration, slot) < layout.tiles;
    LeafSums<Types, kTokenTiles> sums;
    ActivationCursor<Types, kTokenTiles> cursor(work, leaf);
    for (int step = 0; step < layout.leaf_steps; step += work.stage_steps) {
      WaitCopies<kRingStages - 2>();
      ring.CopyStage();
      const int left = layout.leaf_steps - step;
      if (has_tile) {
        MultiplySteps(ring.memory(), stage, left < work.stage_steps ? left : work.stage_steps,
                      activations, cursor, sums);
      }
      stage = ring.Next(stage);
    }
    if (iteration > 0) SyncBlock();  // the sums before these have been read
    memory.Store(sums.Finish());
    if (ThreadIndex() < work.slots * kTileRows) memory.factors.Store(ThreadIndex(), factor.Value());
    SyncBlock();
    if (work.clustered) {
      memory.WriteCluster(iteration);
    } else {
      memory.WriteBlock(iteration);
    }
  }
  WaitCopies<0>();
}

using Kernel = void (*)(FewTokensWork);

template <DType kWeight, DType kActivation>
Kernel KernelFor(int token_tiles) {
  using Types = MatmulTypes<kWeight, kActivation>;
  switch (token_tiles) {
    case 1:
      return FewTokensKernel<Types, 1>;
    case 2:
      return FewTokensKernel<Types, 2>;
    default:
      MARCORO_CHECK(token_tiles == 4);
      return FewTokensKernel<Types, 4>;
  }
}

Kernel KernelFor(DType weight, const MatmulPlan& plan) {
  if (weight == DType::kBF16) return KernelFor<DType::kBF16, DType::kBF16>(plan.token_tiles);
  return plan.activations == DType::kF8E4M3
             ? KernelFor<DType::kF8E4M3, DType::kF8E4M3>(plan.token_tiles)
             : KernelFor<DType::kF8E4M3, DType::kBF16>(plan.token_tiles);
}

}  // namespace

FewTokensMemory LayOutFewTokens(const MatmulLayout& layout, DType dtype, const MatmulPlan& plan,
                                int tokens) {
  FewTokensMemory memory;
  const int warps = plan.slots * plan.block_leaves;
  const int row_bytes = plan.block_leaves * layout.leaf_steps * kStepColumns *
                        static_cast<int>(SizeOf(plan.activations));
  memory.token_bytes = (row_bytes + 127) / 128 * 128 + 16;
  memory.zeros = tokens * memory.token_bytes;
  memory.token_scales = memory.zeros + 16;
  // The ring needs multiples of 16.
  const int scales = plan.activations == DType::kF8E4M3
                         ? (tokens * BlockSegments(layout, plan.block_leaves) + 3) / 4 * 4
                         : 0;
  memory.sums = memory.token_scales + scales * static_cast<int>(sizeof(float));
  memory.ring = memory.sums + (warps * plan.token_tiles * 8 * kSumStride + plan.slots * kTileRows) *
                                  static_cast<int>(sizeof(float));
  memory.end = memory.ring + warps * kRingStages * plan.stage_steps * StepBytes(dtype);
  return memory;
}

void MultiplyFewTokens(Stream stream, const MatmulPlan& plan, DType dtype,
                       const MatmulOperands& operands) {
  const FewTokensWork work = {
      .operands = operands,
      .memory = LayOutFewTokens(operands.weight.layout, dtype, plan, operands.x.tokens),
      .slots = plan.slots,
      .stage_steps = plan.stage_steps,
      .tile_blocks = plan.parts * plan.cluster_blocks,
      .clustered = plan.cluster_blocks > 1};
  const LaunchShape shape = {.grid_x = plan.blocks * work.tile_blocks,
                             .threads = plan.slots * plan.block_leaves * kWarpThreads,
                             .shared_bytes = work.memory.end,
                             .cluster_blocks = plan.cluster_blocks,
                             .overlaps_kernel_ahead = true};
  Launch(stream, shape, KernelFor(dtype, plan), work);
}

}  // namespace marcoro::cuda
