// The product of codes of at most 32 tokens by warpgroups: the time is that of reading the weights
// once.
//
// As in matmul_few_tokens.cu, one block on each multiprocessor keeps its part of the activations in
// shared memory and walks over tiles of 16 rows; a warp has one leaf of a tile, and streams its
// weights through its own ring in shared memory, 48 KB or more of a block under way. Each lane
// reads back the 16 bytes that it copied: its registers of A.
//
// A warpgroup's product has one B for its four warps, which have up to four different leaves. So B
// has the columns of all of them side by side, 8 for every 8 tokens and leaf; each warp gets the
// products of its rows with all columns, and takes those of its own leaf. The tensor cores do up to
// four times the work that is wanted: for 2 KB of weights at most 64 cycles, usually 16, of the 110
// in which they come from memory.
//
// Every 128 columns of a leaf are one chain of four products, which begins at zero and is added to
// the leaf's sum in F32. Meanwhile the block's other warpgroups multiply.
#include "kernels/check.h"
#include "kernels/cuda/device/async_copy.h"
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/warpgroup_matrix.h"
#include "kernels/cuda/matmul_codes.h"
#include "kernels/cuda/matmul_fragments.h"

namespace marcoro::cuda {
namespace {

constexpr DType kCodes = DType::kF8E4M3;
constexpr int kSumStride = kTileRows + 4;  // puts a warp's stores in 32 banks
constexpr int kTokenTile = 8;
constexpr int kPanelColumns = kSwizzledRowBytes;
constexpr int kPanelBytes = kTokenTile * kSwizzledRowBytes;
static_assert(kPanelColumns == kPromotedSteps * kStepColumns);

constexpr int Panels(const MatmulLayout& layout) {
  return (layout.leaf_steps + kPromotedSteps - 1) / kPromotedSteps;
}
// Segments that begin in a block's leaves.
constexpr int BlockSegments(const MatmulLayout& layout, int block_leaves) {
  const int segments = block_leaves >> layout.scale_level;
  return segments > 0 ? segments : 1;
}

struct FewCodesWork {
  MatmulOperands operands;
  FewCodesMemory memory;
  int slots = 0;
  int stage_steps = 0;
};

// The tile that a slot of this block computes in an iteration.
MARCORO_DEVICE int TileOf(const FewCodesWork& work, int iteration, int slot) {
  return (iteration * work.slots + slot) * GridX() + BlockIndexX();
}

// What a warp computes.
struct WarpShare {
  int slot;
  int leaf;  // of the block

  MARCORO_DEVICE explicit WarpShare(const FewCodesWork& work)
      : slot(Warp() / work.operands.block_leaves), leaf(Warp() % work.operands.block_leaves) {}
};

// The weights of a warp: its leaf of one tile after the other, in stages.
class CodeRing {
 public:
  MARCORO_DEVICE CodeRing(const FewCodesWork& work, const WarpShare& share)
      : work_(work),
        memory_(work.memory.ring, work.memory.end - work.memory.ring),
        share_(share),
        first_(Warp() * kRingStages * StageBytes()) {}

  // Begins to copy the next stage, if there is one.
  MARCORO_DEVICE void CopyStage() {
    const MatmulLayout& layout = work_.operands.weight.layout;
    const int tile = TileOf(work_, iteration_, share_.slot);
    if (tile < layout.tiles) {
      const int left = layout.leaf_steps - step_;
      const int bytes = (left < work_.stage_steps ? left : work_.stage_steps) * StepBytes(kCodes);
      const int leaf = BlockIndexY() * work_.operands.block_leaves + share_.leaf;
      const char* from = work_.operands.weight.tiles + tile * layout.tile_bytes +
                         leaf * layout.leaf_bytes + step_ * StepBytes(kCodes);
      for (int offset = Lane() * 16; offset < bytes; offset += kWarpThreads * 16) {
        CopyAsync16(memory_.Address(first_ + write_ * StageBytes() + offset), from + offset);
      }
    }
    CommitCopies();
    write_ = (write_ + 1) % kRingStages;
    step_ += work_.stage_steps;
    if (step_ < layout.leaf_steps) return;
    step_ = 0;
    ++iteration_;
  }
  // Where the oldest stage lies, which has arrived then; the next one is asked for.
  MARCORO_DEVICE int TakeStage() {
    WaitCopies<kRingStages - 2>();
    CopyStage();
    const int stage = first_ + read_ * StageBytes();
    read_ = (read_ + 1) % kRingStages;
    return stage;
  }
  MARCORO_DEVICE const SharedArray<char>& memory() const { return memory_; }

 private:
  static_assert((kRingStages & (kRingStages - 1)) == 0);

  MARCORO_DEVICE int StageBytes() const { return work_.stage_steps * StepBytes(kCodes); }

  const FewCodesWork& work_;
  SharedArray<char> memory_;
  WarpShare share_;
  int first_;
  int write_ = 0;
  int read_ = 0;
  // Of the next copy.
  int iteration_ = 0;
  int step_ = 0;
};

// Copies this block's leaves of all tokens to shared memory, [leaf][8 tokens][128 columns],
// swizzled, padded with zeros. Of tokens that there are not it holds anything: their sums are never
// looked at.
template <int kTokenTiles>
MARCORO_DEVICE void StoreCodes(const FewCodesWork& work) {
  constexpr int kUnitColumns = 16;
  const ActivationView& x = work.operands.x;
  const MatmulLayout& layout = work.operands.weight.layout;
  const SharedArray<char> memory(0, work.memory.token_scales);
  const int leaf_units = Panels(layout) * (kPanelColumns / kUnitColumns);
  const int units = work.operands.block_leaves * leaf_units;
  const int first_column = BlockIndexY() * work.operands.block_leaves * layout.leaf_columns;
  for (int token = 0; token < x.tokens; ++token) {
    const auto* row = static_cast<const uint8_t*>(x.data) + token * x.stride + first_column;
    for (int unit = ThreadIndex(); unit < units; unit += BlockThreads()) {
      const int leaf = unit / leaf_units;
      const int column = unit % leaf_units * kUnitColumns;
      const int tile = leaf * kTokenTiles + token / kTokenTile;
      memory.StoreAs(tile * work.memory.token_tile_bytes + column / kPanelColumns * kPanelBytes +
                         SwizzledOffset(token % kTokenTile, column % kPanelColumns),
                     LoadUnit(row + static_cast<int64_t>(leaf) * layout.leaf_columns + column,
                              layout.leaf_columns - column, x.vectors));
    }
  }
  FenceAsyncProxy();
}

// Copies the tokens' scales of this block's segments to shared memory.
MARCORO_DEVICE SharedArray<float> StoreTokenScales(const FewCodesWork& work) {
  const ActivationView& x = work.operands.x;
  const MatmulLayout& layout = work.operands.weight.layout;
  const int segments = BlockSegments(layout, work.operands.block_leaves);
  const int first = BlockIndexY() * work.operands.block_leaves >> layout.scale_level;
  const SharedArray<float> scales(work.memory.token_scales, x.tokens * segments);
  for (int i = ThreadIndex(); i < x.tokens * segments; i += BlockThreads()) {
    scales.Store(i, x.scales[i / segments * x.scale_stride + first + i % segments]);
  }
  return scales;
}

// A warp's sums of its leaf. kLeaves: those that its warpgroup has.
template <int kTokenTiles, int kLeaves>
class CodeSums {
 public:
  static constexpr int kCount = kTokenTiles * 4;

  MARCORO_DEVICE explicit CodeSums(const WarpShare& share) {
    MARCORO_UNROLL_LOOP
    for (int leaf = 0; leaf < kLeaves; ++leaf) {
      mine_[leaf] = share.leaf % kLeaves == leaf ? 0xffffffffu : 0;
    }
  }

  // Adds the product of 128 columns. The weights of so many steps lie in the ring, those of others
  // are zeros; `b` describes the activations.
  MARCORO_DEVICE void Multiply(const SharedArray<char>& ring, int from, int steps, uint64_t b) {
    StepWeights<kCodes> weights[kPromotedSteps] = {};
    MARCORO_UNROLL_LOOP
    for (int step = 0; step < kPromotedSteps; ++step) {
      if (step < steps) weights[step].Load(ring, from + step * StepBytes(kCodes));
    }
    float product[kLeaves * kCount];
    FenceWarpgroupMatrix(product);
    MARCORO_UNROLL_LOOP
    for (int step = 0; step < kPromotedSteps; ++step) {
      constexpr uint64_t kDescriptorStep = kStepColumns / 16;
      MultiplyWarpgroupCodes(product, weights[step].words[0].word, b + step * kDescriptorStep,
                             /*accumulate=*/step > 0);
    }
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<0>(product);
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kCount; ++i) {
      uint32_t mine = 0;
      MARCORO_UNROLL_LOOP
      for (int leaf = 0; leaf < kLeaves; ++leaf) {
        mine |= FloatToBits(product[leaf * kCount + i]) & mine_[leaf];
      }
      sums_[i] = Add(sums_[i], BitsToFloat(mine));
    }
  }
  MARCORO_DEVICE float Get(int i) const { return sums_[i]; }

 private:
  // All bits for the leaf that is the warp's own: registers have no index.
  uint32_t mine_[kLeaves];
  float sums_[kCount] = {};
};

// The sums of a warp's leaf of the tile that its slot has in an iteration.
template <int kTokenTiles, int kLeaves>
MARCORO_DEVICE CodeSums<kTokenTiles, kLeaves> MultiplyLeaf(const FewCodesWork& work,
                                                           const WarpShare& share, bool has_tile,
                                                           CodeRing& ring) {
  const int leaf_steps = work.operands.weight.layout.leaf_steps;
  const int first_tile = share.leaf / kLeaves * kLeaves * kTokenTiles;
  uint64_t b = MatrixDescriptor(SharedMemory() + first_tile * work.memory.token_tile_bytes,
                                work.memory.token_tile_bytes);
  CodeSums<kTokenTiles, kLeaves> sums(share);
  for (int first = 0; first < leaf_steps; first += work.stage_steps) {
    const int stage = ring.TakeStage();
    const int left = leaf_steps - first;
    const int steps = left < work.stage_steps ? left : work.stage_steps;
    for (int step = 0; step < steps; step += kPromotedSteps) {
      sums.Multiply(ring.memory(), stage + step * StepBytes(kCodes), has_tile ? steps - step : 0,
                    b);
      b += kPanelBytes / 16;
    }
  }
  return sums;
}

// The warps' sums in shared memory, [warp][token][row], and the factors of the block's rows.
template <int kTokenTiles>
struct SumsInMemory {
  static constexpr int kTokens = kTokenTiles * kTokenTile;
  const FewCodesWork& work;
  SharedArray<float> token_scales;
  SharedArray<float> sums;
  SharedArray<float> factors;

  MARCORO_DEVICE SumsInMemory(const FewCodesWork& work_in, const SharedArray<float>& scales)
      : work(work_in),
        token_scales(scales),
        sums(work.memory.sums, (work.memory.factors - work.memory.sums) / 4),
        factors(work.memory.factors, work.slots * kTileRows) {}

  template <typename Sums>
  MARCORO_DEVICE void Store(const Sums& from) const {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < Sums::kCount; ++i) {
      const int token = i / 4 * kTokenTile + Lane() % 4 * 2 + i % 2;
      const int row = Lane() / 4 + i / 2 % 2 * 8;
      sums.Store((Warp() * kTokens + token) * kSumStride + row, from.Get(i));
    }
  }

  // The tree over kLeaves leaves of an element of a slot's tile.
  template <int kLeaves>
  MARCORO_DEVICE float Sum(int slot, int token, int row) const {
    const MatmulLayout& layout = work.operands.weight.layout;
    const int first = (slot * kLeaves * kTokens + token) * kSumStride + row;
    const int first_scale = token * BlockSegments(layout, kLeaves);
    const float factor = factors.Load(slot * kTileRows + row);
    return SumTree<kLeaves>(
        0, layout.scale_level,
        [&](float node, int leaf) {
          return Multiply(Multiply(node, factor),
                          token_scales.Load(first_scale + (leaf >> layout.scale_level)));
        },
        [&](int leaf) { return sums.Load(first + leaf * kTokens * kSumStride); });
  }
  MARCORO_DEVICE float Sum(int slot, int token, int row) const {
    switch (work.operands.block_leaves) {
      case 1:
        return Sum<1>(slot, token, row);
      case 2:
        return Sum<2>(slot, token, row);
      case 4:
        return Sum<4>(slot, token, row);
      case 8:
        return Sum<8>(slot, token, row);
      default:
        return Sum<16>(slot, token, row);
    }
  }

  MARCORO_DEVICE void WriteOutput(int iteration) const {
    const MatmulOutput& out = work.operands.out;
    float* part = out.data + BlockIndexY() * out.part_stride;
    for (int i = ThreadIndex(); i < work.slots * kTokens * kTileRows; i += BlockThreads()) {
      const int row = i % kTileRows;
      const int token = i / kTileRows % kTokens;
      const int slot = i / kTileRows / kTokens;
      const int out_row = TileOf(work, iteration, slot) * kTileRows + row;
      if (token >= work.operands.x.tokens || out_row >= work.operands.weight.layout.rows) continue;
      part[token * out.stride + out_row] = Sum(slot, token, row);
    }
  }
};

template <int kTokenTiles, int kLeaves>
MARCORO_KERNEL(kMostWarps* kWarpThreads, 1)
FewCodesKernel(FewCodesWork work) {
  LaunchDependents();
  const MatmulLayout& layout = work.operands.weight.layout;
  const WarpShare share(work);
  CodeRing ring(work, share);
  for (int i = 0; i < kRingStages - 1; ++i) ring.CopyStage();
  // Weights are under way while the kernel ahead ends: no kernel of a step writes them.
  WaitForKernelAhead();
  StoreCodes<kTokenTiles>(work);
  const SumsInMemory<kTokenTiles> memory(work, StoreTokenScales(work));
  SyncBlock();
  for (int iteration = 0; iteration * work.slots * GridX() < layout.tiles; ++iteration) {
    // Asked for early, looked at late.
    RawFactor factor;
    if (ThreadIndex() < work.slots * kTileRows) {
      factor.Load(work.operands.weight,
                  TileOf(work, iteration, ThreadIndex() / kTileRows) * kTileRows +
                      ThreadIndex() % kTileRows);
    }
    const bool has_tile = TileOf(work, iteration, share.slot) < layout.tiles;
    const auto sums = MultiplyLeaf<kTokenTiles, kLeaves>(work, share, has_tile, ring);
    if (iteration > 0) SyncBlock();  // the sums before these have been read
    memory.Store(sums);
    if (ThreadIndex() < work.slots * kTileRows) memory.factors.Store(ThreadIndex(), factor.Value());
    SyncBlock();
    memory.WriteOutput(iteration);
  }
  WaitCopies<0>();
}

using Kernel = void (*)(FewCodesWork);

template <int kTokenTiles>
Kernel KernelFor(int block_leaves) {
  if (block_leaves == 1) return FewCodesKernel<kTokenTiles, 1>;
  if (block_leaves == 2) return FewCodesKernel<kTokenTiles, 2>;
  return FewCodesKernel<kTokenTiles, 4>;
}

Kernel KernelFor(const MatmulPlan& plan) {
  if (plan.token_tiles == 1) return KernelFor<1>(plan.block_leaves);
  if (plan.token_tiles == 2) return KernelFor<2>(plan.block_leaves);
  MARCORO_CHECK(plan.token_tiles == 4);
  return KernelFor<4>(plan.block_leaves);
}

}  // namespace

FewCodesMemory LayOutFewCodes(const MatmulLayout& layout, const MatmulPlan& plan) {
  constexpr int kFloat = static_cast<int>(sizeof(float));
  const int warps = plan.slots * plan.block_leaves;
  const int tokens = plan.token_tiles * kTokenTile;
  FewCodesMemory memory;
  memory.token_tile_bytes = Panels(layout) * kPanelBytes;
  memory.token_scales = plan.block_leaves * plan.token_tiles * memory.token_tile_bytes;
  memory.sums = memory.token_scales + tokens * BlockSegments(layout, plan.block_leaves) * kFloat;
  memory.factors = memory.sums + warps * tokens * kSumStride * kFloat;
  memory.ring = memory.factors + plan.slots * kTileRows * kFloat;
  memory.end = memory.ring + warps * kRingStages * plan.stage_steps * StepBytes(kCodes);
  return memory;
}

void MultiplyFewCodes(Stream stream, const MatmulPlan& plan, const MatmulOperands& operands) {
  MARCORO_CHECK(operands.x.tokens <= plan.token_tiles * kTokenTile);
  MARCORO_CHECK(plan.slots * plan.block_leaves % kWarpgroupWarps == 0);
  MARCORO_CHECK(plan.stage_steps % kPromotedSteps == 0);
  const FewCodesWork work = {.operands = operands,
                             .memory = LayOutFewCodes(operands.weight.layout, plan),
                             .slots = plan.slots,
                             .stage_steps = plan.stage_steps};
  const LaunchShape shape = {.grid_x = plan.blocks,
                             .grid_y = plan.parts,
                             .threads = plan.slots * plan.block_leaves * kWarpThreads,
                             .shared_bytes = work.memory.end,
                             .overlaps_kernel_ahead = true};
  Launch(stream, shape, KernelFor(plan), work);
}

}  // namespace marcoro::cuda
