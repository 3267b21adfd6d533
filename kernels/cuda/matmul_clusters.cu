// The product of 9 to 64 tokens on GPUs whose tensor cores multiply for warpgroups and whose blocks
// form clusters (sm_90a). Used where a probe found the bits of mma.sync (matmul_probe.cc): the same
// packed weights, leaves and tree, each leaf one chain of products of 16 columns. The time is meant
// to be that of reading the weights once, as for one token.
//
// The blocks of a cluster have the same tiles of 64 rows, each block one leaf of them. All tiles of
// a block are multiplied at the same time, so that its leaf of the activations passes through
// shared memory once; they are as many as the cluster has in all, up to 8 (two for each of four
// warpgroups), then rounds begin. When a leaf ends, its sums lie in shared memory, and every block
// of the cluster adds up, through distributed shared memory in the order of the tree, and writes a
// share of them: no second launch, nothing through memory.
//
// A warpgroup has the copy engine bring stages of 64 columns: weights as they are packed, a copy
// for each 16 rows, and activations, swizzled. Stages fill the shared memory. At 32 tokens, of a 7B
// model: qkv 12 of 12 KB, o and down 11 of 20 KB, gate_up 6 of 36 KB, lm_head 3 of 68 KB; all but
// one are under way while that is worked on, and 26 KB are needed. At full bandwidth 19 bytes of
// weights come in a cycle, 1 KB (64 rows of 16 columns) in 55 cycles. Meanwhile shared memory takes
// and delivers that, and delivers B: 4 KB or 32 cycles at 64 tokens; tensor cores need 8, 16 or 32
// cycles for 16, 32 or 64 tokens; a warp has 50 instructions for 512 bytes of E4M3 where its
// warpgroup has two tiles, 65 where it has one, whatever the number of tokens, of 110 issue slots.
//
// Bank conflicts: none for weights (contiguous); sums of a token lie 4 floats (modulo 16) behind
// those of the one before, which puts a warp's stores in 32 banks.
#include <array>
#include <atomic>

#include "kernels/check.h"
#include "kernels/cuda/device/cluster.h"
#include "kernels/cuda/device/register_share.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/matmul_clusters.h"

namespace marcoro::cuda {
namespace {

constexpr int kMostThreads = (kMostClusterWarpgroups + 1) * kWarpgroupThreads;
// Of a thread that sums and of one that copies. All begin with 96.
constexpr int kSummingRegisters = 112;
constexpr int kCopyingRegisters = 32;

// A thread's sums of its warpgroup's tiles.
template <typename S>
struct Sums {
  float c[S::kTiles][S::kTokens / 2];

  MARCORO_DEVICE auto All() -> float (&)[S::kTiles * S::kTokens / 2] {
    return reinterpret_cast<float(&)[S::kTiles * S::kTokens / 2]>(c);
  }
  MARCORO_DEVICE void Clear() {
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTiles; ++tile) {
      MARCORO_UNROLL_LOOP
      for (int i = 0; i < S::kTokens / 2; ++i) c[tile][i] = 0;
    }
  }
};

// A warp that sums.
template <typename S>
class Summing {
 public:
  MARCORO_DEVICE explicit Summing(const ClustersWork& work) : work_(work), stage_(work) {}

  // sums = the product of a round's leaf.
  MARCORO_DEVICE void MultiplyLeaf(Sums<S>& sums) {
    sums.Clear();
    ClusterStage read = stage_;
    const int leaf_steps = work_.operands.weight.layout.leaf_steps;
    for (int steps = leaf_steps; steps > 0; steps -= kStageSteps) {
      stage_.Filled().Wait(stage_.Parity());
      MARCORO_UNROLL_LOOP
      for (int step = 0; step < kStageSteps; ++step) {
        if (step > 0 && step >= steps) continue;
        LoadWeights(step);
        Multiply(step, 0, sums);
        if (step == 0 && steps < leaf_steps) {  // nobody reads the stage before any more
          GiveBack(read);
        }
        Multiply(step, 1, sums);
        // BF16 weights are A's registers themselves, which are left alone while a product runs.
        if constexpr (S::kWeight == DType::kBF16) WaitWarpgroupMatrix<0>(sums.All());
      }
      stage_.Advance();
    }
    WaitWarpgroupMatrix<0>(sums.All());
    GiveBack(read);
  }

  // The sums of all of the block's tiles, [token][row].
  MARCORO_DEVICE void Store(const Sums<S>& sums, const SharedArray<float>& memory) const {
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTiles; ++tile) {
      MARCORO_UNROLL_LOOP
      for (int i = 0; i < S::kTokens / 2; ++i) {
        const int token = i / 4 * 8 + Lane() % 4 * 2 + i % 2;
        const int row = Tile(tile) * kTileRows + i / 2 % 2 * 8 + Lane() / 4;
        memory.Store(token * work_.memory.sum_stride + row, sums.c[tile][i]);
      }
    }
  }

 private:
  MARCORO_DEVICE static void GiveBack(ClusterStage& stage) {
    SyncWarp();  // all lanes have read their weights
    if (Lane() == 0) stage.Free().Arrive();
    stage.Advance();
  }
  // Of 16 rows, among the block's.
  MARCORO_DEVICE static int Tile(int tile) {
    return (Warp() / kWarpgroupWarps * S::kTiles + tile) * kWarpgroupWarps +
           Warp() % kWarpgroupWarps;
  }
  MARCORO_DEVICE void LoadWeights(int step) {
    const SharedArray<char> memory(stage_.Offset() + work_.memory.activation_bytes,
                                   work_.memory.stage_bytes - work_.memory.activation_bytes);
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTiles; ++tile) {
      weights_[tile].Load(memory,
                          Tile(tile) * work_.memory.tile_bytes + step * StepBytes(S::kWeight));
    }
  }
  // Starts the product of 16 columns and waits for the one before.
  MARCORO_DEVICE void Multiply(int step, int k, Sums<S>& sums) {
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTiles; ++tile) weights_[tile].Unpack(k, a_[k][tile]);
    const uint64_t b =
        MatrixDescriptor(SharedMemory() + stage_.Offset() + (step * kStepColumns + k * 16) * 2);
    FenceWarpgroupMatrix(sums.All());
    MARCORO_UNROLL_LOOP
    for (int tile = 0; tile < S::kTiles; ++tile) {
      MultiplyWarpgroupMatrix(sums.c[tile], a_[k][tile], b);
    }
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<1>(sums.All());
  }

  const ClustersWork& work_;
  ClusterStage stage_;
  StepWeights<S::kWeight> weights_[S::kTiles];
  // Two products' A, as one is under way while the next one's is unpacked.
  uint32_t a_[2][S::kTiles][4];
};

// Adds up this block's share of the cluster's sums, four rows of a token at a time, and writes it.
template <int kBlocks>
class ClusterTree {
 public:
  MARCORO_DEVICE ClusterTree(const ClustersWork& work, const SharedArray<float>& sums,
                             const SharedArray<float>& factors)
      : work_(work), sums_(sums), factors_(factors) {}

  MARCORO_DEVICE void Write(int round) const {
    const int quads = work_.slots * (kWarpgroupRows / 4);
    const int count = work_.operands.x.tokens * quads;
    const int rank = BlockIndexX() % kBlocks;
    for (int i = rank * SummingThreads() + ThreadIndex(); i < count;
         i += kBlocks * SummingThreads()) {
      const int token = i / quads;
      const int row = i % quads * 4;
      const int out_row = FirstRow(work_, round, row / kWarpgroupRows) + row % kWarpgroupRows;
      if (out_row < work_.operands.weight.layout.rows) WriteRows(token, row, out_row);
    }
  }

 private:
  MARCORO_DEVICE void WriteRows(int token, int row, int out_row) const {
    Float4 nodes[kBlocks];
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kBlocks; ++i) {
      nodes[i] = ClusterArray<float>(sums_, i).template LoadAs<Float4>(
          token * work_.memory.sum_stride + row);
    }
    const auto factors = factors_.LoadAs<Float4>(row);
    const MatmulLayout& layout = work_.operands.weight.layout;
    Float4 sum;
    MARCORO_UNROLL_LOOP
    for (int j = 0; j < 4; ++j) {
      const auto load = [&](int i) { return nodes[i].value[j]; };
      const auto scale = [&](float node, int) { return Multiply(node, factors.value[j]); };
      sum.value[j] = SumTree<kBlocks>(0, layout.scale_level, scale, load);
    }
    float* out = work_.operands.out.data + token * work_.operands.out.stride + out_row;
    if (work_.vectors && out_row + 4 <= layout.rows) {
      *reinterpret_cast<Float4*>(out) = sum;
      return;
    }
    MARCORO_UNROLL_LOOP
    for (int j = 0; j < 4; ++j) {
      if (out_row + j < layout.rows) out[j] = sum.value[j];
    }
  }

  const ClustersWork& work_;
  SharedArray<float> sums_;
  SharedArray<float> factors_;
};

MARCORO_DEVICE void WriteSums(const ClustersWork& work, const SharedArray<float>& sums,
                              const SharedArray<float>& factors, int round) {
  switch (work.operands.weight.layout.leaves) {
    case 1:
      return ClusterTree<1>(work, sums, factors).Write(round);
    case 2:
      return ClusterTree<2>(work, sums, factors).Write(round);
    case 4:
      return ClusterTree<4>(work, sums, factors).Write(round);
    default:
      return ClusterTree<8>(work, sums, factors).Write(round);
  }
}

// Barriers of the warps that sum and of those that copy.
MARCORO_DEVICE void MeetInBlock() { SyncBlock(); }
MARCORO_DEVICE void MeetInCluster() { SyncCluster(); }

template <typename S>
MARCORO_DEVICE void CopyBlock(const ClustersWork& work, const TensorMap& x) {
  ClusterCopies<S::kWeight> copies(work);
  for (int round = 0; round < Rounds(work); ++round) {
    copies.CopyRound(x, round);
    MeetInBlock();
    MeetInCluster();
    MeetInCluster();
  }
}

template <typename S>
MARCORO_DEVICE void SumBlock(const ClustersWork& work) {
  const int block_rows = work.slots * kWarpgroupRows;
  const SharedArray<float> memory(0, S::kTokens * work.memory.sum_stride);
  const SharedArray<float> factors(work.memory.factors, block_rows);
  Summing<S> summing(work);
  WaitForKernelAhead();  // it may read what is written here
  for (int round = 0; round < Rounds(work); ++round) {
    // Asked for early, looked at late: as many threads as rows, or twice as many.
    RawFactor factor;
    if (ThreadIndex() < block_rows) {
      factor.Load(work.operands.weight, FirstRow(work, round, ThreadIndex() / kWarpgroupRows) +
                                            ThreadIndex() % kWarpgroupRows);
    }
    Sums<S> sums;
    summing.MultiplyLeaf(sums);
    MeetInBlock();  // all have read the stages
    summing.Store(sums, memory);
    if (ThreadIndex() < block_rows) factors.Store(ThreadIndex(), factor.Value());
    MeetInCluster();
    WriteSums(work, memory, factors, round);
    FenceAsyncProxy();  // the next round's copies take the place of sums
    MeetInCluster();
  }
}

template <typename S>
MARCORO_KERNEL(kMostThreads, 1)
ClustersKernel(ClustersWork work, const MARCORO_GRID_CONSTANT TensorMap x) {
  if (ThreadIndex() == 0) ClusterStage::Initialize(work);
  SyncBlock();
  LaunchDependents();
  if (Warp() < SummingWarps()) {
    TakeRegisters<kSummingRegisters>();
    SumBlock<S>(work);
  } else {
    GiveRegisters<kCopyingRegisters>();
    CopyBlock<S>(work, x);
  }
}

using Kernel = void (*)(ClustersWork, const TensorMap);

template <DType kWeight, int kTokens>
Kernel KernelFor(int tiles) {
  MARCORO_CHECK(tiles == 1 || tiles == 2);
  return tiles == 1 ? ClustersKernel<ClusterShape<kWeight, kTokens, 1>>
                    : ClustersKernel<ClusterShape<kWeight, kTokens, 2>>;
}

template <DType kWeight>
Kernel KernelFor(const MatmulPlan& plan) {
  switch (plan.token_tiles) {
    case 2:
      return KernelFor<kWeight, 16>(plan.warpgroup_tiles);
    case 4:
      return KernelFor<kWeight, 32>(plan.warpgroup_tiles);
    default:
      MARCORO_CHECK(plan.token_tiles == 8);
      return KernelFor<kWeight, 64>(plan.warpgroup_tiles);
  }
}

// How many clusters run at once if a block has all of a multiprocessor's shared memory.
int FindClusters(int blocks) {
  return MostClusters(ClustersKernel<ClusterShape<DType::kF8E4M3, 32, 1>>,
                      {.grid_x = blocks,
                       .threads = kMostThreads,
                       .shared_bytes = LimitsOfDevice().shared_bytes,
                       .cluster_blocks = blocks});
}

}  // namespace

int ClustersSharedBytes(DType dtype, const MatmulPlan& plan) {
  return LayOutClusters(dtype, plan.token_tiles * 8, plan.slots, plan.stages).end;
}

std::array<int, 3> ClustersOfDevice() {
  // Of each device, once it is known: 16 bits for each number, and one more bit.
  static std::array<std::atomic<uint64_t>, 64> known;
  constexpr uint64_t kKnown = uint64_t{1} << 63;
  const auto device = static_cast<size_t>(CurrentDevice());
  std::array<int, 3> clusters = {};
  if (device >= known.size()) return clusters;
  uint64_t packed = known[device].load();
  if (packed == 0) {
    packed = kKnown;
    for (size_t i = 0; i < clusters.size(); ++i) {
      packed |= static_cast<uint64_t>(FindClusters(2 << i)) << (16 * i);
    }
    known[device].store(packed);
  }
  for (size_t i = 0; i < clusters.size(); ++i) {
    clusters[i] = static_cast<int>(packed >> (16 * i) & 0xffffu);
  }
  return clusters;
}

void MultiplyByClusters(Stream stream, const MatmulPlan& plan, DType dtype,
                        const MatmulOperands& operands) {
  const MatmulLayout& layout = operands.weight.layout;
  MARCORO_CHECK(operands.x.vectors && layout.leaf_columns % kStepColumns == 0);
  MARCORO_CHECK(plan.cluster_blocks == layout.leaves && operands.x.tokens <= plan.token_tiles * 8);
  const int tokens = plan.token_tiles * 8;
  TensorMap x;
  MARCORO_CHECK(EncodeTensorMap({.data = operands.x.data,
                                 .element_bytes = 2,
                                 .rows = operands.x.tokens,
                                 .columns = layout.leaves * int64_t{layout.leaf_columns},
                                 .stride_bytes = operands.x.stride * 2,
                                 .box_rows = tokens,
                                 .box_columns = kStageColumns,
                                 .swizzled = true},
                                &x));
  const ClustersWork work = {
      .operands = operands,
      .memory = LayOutClusters(dtype, tokens, plan.slots, plan.stages),
      .slots = plan.slots,
      .stages = plan.stages,
      .vectors = reinterpret_cast<uintptr_t>(operands.out.data) % sizeof(Float4) == 0 &&
                 operands.out.stride % 4 == 0};
  const LaunchShape shape = {.grid_x = plan.blocks * plan.cluster_blocks,
                             .threads = (plan.slots / plan.warpgroup_tiles + 1) * kWarpgroupThreads,
                             .shared_bytes = work.memory.end,
                             .cluster_blocks = plan.cluster_blocks,
                             .overlaps_kernel_ahead = true};
  Launch(stream, shape,
         dtype == DType::kF8E4M3 ? KernelFor<DType::kF8E4M3>(plan) : KernelFor<DType::kBF16>(plan),
         work, x);
}

}  // namespace marcoro::cuda
