// How the clusters' kernel (matmul_clusters.cu) shares out its work and brings it to shared memory.
#pragma once

#include "kernels/cuda/device/bits.h"
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/tensor_map.h"
#include "kernels/cuda/device/warpgroup_matrix.h"
#include "kernels/cuda/matmul_fragments.h"
#include "kernels/cuda/matmul_kernels.h"

namespace marcoro::cuda {

inline constexpr int kWarpgroupWarps = 4;
inline constexpr int kWarpgroupThreads = kWarpgroupWarps * kWarpThreads;
inline constexpr int kStageColumns = kSwizzledRowBytes / 2;
inline constexpr int kStageSteps = kStageColumns / kStepColumns;
inline constexpr int kBarrierPairBytes = 2 * Mbarrier::kBytes;

// Where a block keeps what in shared memory, in bytes: stages, each the activations and behind them
// the weights of 16 rows after 16 rows; factors of the block's rows; barriers. Sums take the place
// of the stages when all have been read.
struct ClustersMemory {
  int activation_bytes;
  int tile_bytes;  // of 16 rows of a stage
  int stage_bytes;
  int sum_stride;  // floats from one token's sums to the next's
  int factors;
  int barriers;
  int end;
};

constexpr ClustersMemory LayOutClusters(DType dtype, int tokens, int slots, int stages) {
  ClustersMemory memory = {};
  const int rows = slots * kWarpgroupRows;
  memory.activation_bytes = tokens * kSwizzledRowBytes;
  memory.tile_bytes = kStageSteps * StepBytes(dtype);
  memory.stage_bytes = memory.activation_bytes + rows / kTileRows * memory.tile_bytes;
  memory.sum_stride = rows + 4;
  const int ring = stages * memory.stage_bytes;
  const int sums = tokens * memory.sum_stride * static_cast<int>(sizeof(float));
  memory.factors = ring > sums ? ring : sums;
  memory.barriers = memory.factors + rows * static_cast<int>(sizeof(float));
  memory.end = memory.barriers + stages * kBarrierPairBytes;
  return memory;
}

struct ClustersWork {
  MatmulOperands operands;
  ClustersMemory memory;
  int slots = 0;  // tiles of 64 rows that a block has at once
  int stages = 0;
  bool vectors = false;  // four neighbouring outputs of a token are aligned
};

template <DType kWeightType, int kTokenCount, int kTileCount>
struct ClusterShape {
  static constexpr DType kWeight = kWeightType;
  static constexpr int kTokens = kTokenCount;
  static constexpr int kTiles = kTileCount;  // of 64 rows, that a warpgroup has
};

// The last warpgroup copies.
MARCORO_DEVICE int SummingWarps() { return BlockThreads() / kWarpThreads - kWarpgroupWarps; }
MARCORO_DEVICE int SummingThreads() { return SummingWarps() * kWarpThreads; }
// The first row of the tile that a slot of this block's cluster has.
MARCORO_DEVICE int FirstRow(const ClustersWork& work, int round, int slot) {
  const int blocks = work.operands.weight.layout.leaves;
  return ((round * work.slots + slot) * (GridX() / blocks) + BlockIndexX() / blocks) *
         kWarpgroupRows;
}
MARCORO_DEVICE int Rounds(const ClustersWork& work) {
  const MatmulLayout& layout = work.operands.weight.layout;
  const int round_rows = work.slots * (GridX() / layout.leaves) * kWarpgroupRows;
  return (layout.rows + round_rows - 1) / round_rows;
}
MARCORO_DEVICE int LeafStages(const ClustersWork& work) {
  return (work.operands.weight.layout.leaf_steps + kStageSteps - 1) / kStageSteps;
}

// A place in the ring of stages: each is filled by the copy engine for all warps that copy, read by
// all warps that sum, and given back by them.
class ClusterStage {
 public:
  MARCORO_DEVICE explicit ClusterStage(const ClustersWork& work)
      : stages_(work.stages), bytes_(work.memory.stage_bytes), barriers_(work.memory.barriers) {}

  MARCORO_DEVICE int Offset() const { return slot_ * bytes_; }
  MARCORO_DEVICE Mbarrier Filled() const { return Mbarrier(barriers_ + slot_ * kBarrierPairBytes); }
  MARCORO_DEVICE Mbarrier Free() const {
    return Mbarrier(barriers_ + slot_ * kBarrierPairBytes + Mbarrier::kBytes);
  }
  // Of Filled's phase that this turn ends.
  MARCORO_DEVICE uint32_t Parity() const { return parity_; }
  MARCORO_DEVICE void Advance() {
    if (++slot_ < stages_) return;
    slot_ = 0;
    parity_ ^= 1u;
  }

  // By one thread, for all.
  MARCORO_DEVICE static void Initialize(const ClustersWork& work) {
    ClusterStage stage(work);
    for (int i = 0; i < work.stages; ++i) {
      stage.Filled().Initialize(kWarpgroupWarps);
      stage.Free().Initialize(SummingWarps());
      stage.Advance();
    }
    PublishMbarriers();
  }

 private:
  int stages_;
  int bytes_;
  int barriers_;
  int slot_ = 0;
  uint32_t parity_ = 0;
};

// A warp that copies: of each tile of 64 rows the 16 of its index, a lane for each tile. (Lanes'
// copies leave a warp one by one, some 40 cycles each, so that one warp's would be too few.) The
// first one copies the activations as well.
template <DType kWeight>
class ClusterCopies {
 public:
  MARCORO_DEVICE explicit ClusterCopies(const ClustersWork& work)
      : work_(work),
        stage_(work),
        index_(Warp() - SummingWarps()),
        leaf_(BlockIndexX() % work.operands.weight.layout.leaves) {}

  // All stages of a round. The first ones' weights are asked for before the kernel ahead has ended:
  // no kernel of a step writes them.
  MARCORO_DEVICE void CopyRound(const TensorMap& x, int round) {
    const MatmulLayout& layout = work_.operands.weight.layout;
    const int tile = FirstRow(work_, round, Lane()) / kTileRows + index_;
    has_tile_ = Lane() < work_.slots && tile < layout.tiles;
    tiles_ = CountOnes(Ballot(has_tile_));
    from_ = work_.operands.weight.tiles + tile * layout.tile_bytes + leaf_ * layout.leaf_bytes;
    const int stages = LeafStages(work_);
    const int early = round > 0 ? 0 : stages < work_.stages ? stages : work_.stages;
    ClusterStage activations = stage_;
    MARCORO_KEEP_LOOP
    for (int i = 0; i < early; ++i) CopyWeights(i);
    if (round == 0) WaitForKernelAhead();
    MARCORO_KEEP_LOOP
    for (int i = 0; i < stages; ++i) {
      if (i >= early) CopyWeights(i);
      CopyActivations(x, i, activations);
      activations.Advance();
    }
  }

 private:
  // Begins the next stage.
  MARCORO_DEVICE void CopyWeights(int i) {
    const int left = work_.operands.weight.layout.leaf_steps - i * kStageSteps;
    const int bytes = (left < kStageSteps ? left : kStageSteps) * StepBytes(kWeight);
    const Mbarrier filled = stage_.Filled();
    stage_.Free().Wait(stage_.Parity() ^ 1u);  // at once in the ring's first turn
    if (Lane() == 0) {
      filled.ArriveAndExpect(tiles_ * bytes + (index_ == 0 ? work_.memory.activation_bytes : 0));
    }
    SyncWarp();
    if (has_tile_) {
      CopyBulk(SharedMemory() + stage_.Offset() + work_.memory.activation_bytes +
                   (Lane() * kWarpgroupWarps + index_) * work_.memory.tile_bytes,
               from_ + i * (kStageSteps * StepBytes(kWeight)), bytes, filled);
    }
    stage_.Advance();
  }
  // Columns behind the leaf, in its last stage, are never multiplied.
  MARCORO_DEVICE void CopyActivations(const TensorMap& x, int i, const ClusterStage& stage) const {
    if (index_ > 0 || Lane() > 0) return;
    const int column = leaf_ * work_.operands.weight.layout.leaf_columns + i * kStageColumns;
    CopyTensor(SharedMemory() + stage.Offset(), x, /*row=*/0, column, stage.Filled());
  }

  const ClustersWork& work_;
  ClusterStage stage_;
  int index_;
  int leaf_;
  bool has_tile_ = false;
  int tiles_ = 0;
  const char* from_ = nullptr;
};

}  // namespace marcoro::cuda
