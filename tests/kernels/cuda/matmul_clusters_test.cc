// Products whose sums meet in the shared memory of a cluster: those of 9 to 64 tokens by
// warpgroups, and those of a few tokens.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/cuda/matmul_harness.h"

namespace marcoro::cuda {
namespace {

// Plans for warpgroups of clusters: one cluster that walks over all rows, some with little shared
// memory, and one for each tile.
std::vector<MatmulPlan> ClusterPlans(const WeightShape& shape, int64_t tokens) {
  std::vector<MatmulPlan> plans;
  struct Limits {
    int clusters;
    int shared_kilobytes;
  };
  for (const Limits& limits : {Limits{1, 227}, Limits{2, 70}, Limits{100, 227}}) {
    const int count = limits.clusters;
    const MatmulPlan plan = PlanMatmul(shape, tokens < 9 ? 9 : tokens,
                                       {.multiprocessors = count,
                                        .shared_bytes = limits.shared_kilobytes * 1024,
                                        .warpgroups = true,
                                        .clusters = {count, count, count}});
    EXPECT_TRUE(plan.by_clusters) << Describe(shape, tokens);
    if (std::find(plans.begin(), plans.end(), plan) == plans.end()) plans.push_back(plan);
  }
  return plans;
}

std::string DescribePlan(const MatmulPlan& plan) {
  return ", " + std::to_string(plan.blocks) + " clusters of " +
         std::to_string(plan.cluster_blocks) + ", " + std::to_string(plan.slots) + " slots, " +
         std::to_string(plan.stages) + " stages";
}

// Through memory, and by mma.sync.
std::vector<float> MultiplyByWarps(const PackedWeight& weight, const std::vector<BFloat16>& x) {
  const auto tokens = static_cast<int64_t>(x.size()) / weight.shape.columns;
  return Multiply(
      weight, x,
      PlanMatmul(weight.shape, tokens, {.multiprocessors = 4, .shared_bytes = 227 * 1024}));
}

void ExpectTheBitsOfWarps(const WeightShape& shape, int64_t tokens, uint32_t seed) {
  const Packed packed(RandomWeight(shape, seed));
  const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, seed + 1);
  const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
  int64_t gap = 3;
  for (const MatmulPlan& plan : ClusterPlans(shape, tokens)) {
    gap ^= 7;  // outputs that lie four at a time, and outputs that do not
    ExpectSameBits(expected, Multiply(packed.weight(), x, plan, {.x = 8, .out = gap}), shape.rows,
                   Describe(shape, tokens) + DescribePlan(plan));
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(MatmulClustersTest, HasTheBitsOfWarpsForRaggedRowsAndTokens) {
  uint32_t seed = 1;
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const int64_t rows : {1, 64, 200}) {
      for (const int64_t tokens : {1, 9, 17, 33, 64}) {
        ExpectTheBitsOfWarps({dtype, rows, 2 * 96, 2}, tokens, seed += 2);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Two products a warpgroup, and rounds: nine tiles and more of one cluster.
TEST(MatmulClustersTest, HasTheBitsOfWarpsForManyRows) {
  uint32_t seed = 50;
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const int64_t tokens : {10, 20, 40}) {
      ExpectTheBitsOfWarps({dtype, 1100, 128, 1}, tokens, seed += 2);
      if (HasFatalFailure()) return;
    }
  }
}

// Segments that fill no stage of 64 columns, beyond the ring of stages, and cut in two, in trees of
// every depth.
TEST(MatmulClustersTest, HasTheBitsOfWarpsForEverySegment) {
  uint32_t seed = 100;
  for (const int64_t segment_columns : {32, 96, 160, 832}) {
    for (const int segments : {1, 2, 4, 8}) {
      ExpectTheBitsOfWarps({DType::kF8E4M3, 40, segments * segment_columns, segments}, 12,
                           seed += 2);
      if (HasFatalFailure()) return;
    }
  }
  for (const int segments : {1, 4}) {
    ExpectTheBitsOfWarps({DType::kF8E4M3, 20, segments * int64_t{4096 + 64}, segments}, 9,
                         seed += 2);
  }
}

TEST(MatmulClustersTest, ScalesEachSegmentBeforeTheTree) {
  // 2^127 + 2^127 overflows unless each is scaled first; 2^-1 · 2^127 twice is 2^127.
  PlainWeight weight({DType::kF8E4M3, 1, 64, 2});
  weight.Code(0, 0) = weight.Code(0, 32) = 0x38;  // 1
  weight.scales = {0.5f};
  std::vector<BFloat16> x(9 * 64);
  for (size_t token = 0; token < 9; ++token) {
    x[token * 64] = x[token * 64 + 32] = ToBFloat16(std::ldexp(1.0f, 127));
  }
  const Packed packed(weight);
  for (const MatmulPlan& plan : ClusterPlans(weight.shape, 9)) {
    EXPECT_EQ(Multiply(packed.weight(), x, plan), std::vector<float>(9, std::ldexp(1.0f, 127)));
  }
}

TEST(MatmulClustersTest, NonFiniteActivationsStayInTheirTokenAndLeaf) {
  const WeightShape shape{DType::kF8E4M3, 40, 2 * 96, 2};
  constexpr int64_t kTokens = 20;
  const Packed packed(RandomWeight(shape, 15));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY}) {
    // The first column behind a leaf lies in the stage that the leaf ends with.
    for (const size_t column : {95u, 96u}) {
      std::vector<BFloat16> x = RandomActivations(kTokens * shape.columns, 16);
      x[13 * 192 + column] = ToBFloat16(bad);
      const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
      for (const MatmulPlan& plan : ClusterPlans(shape, kTokens)) {
        ExpectSameBits(expected, Multiply(packed.weight(), x, plan), shape.rows,
                       DescribePlan(plan));
      }
    }
  }
}

TEST(MatmulClustersTest, NaNWeightsStayInTheirRow) {
  const WeightShape shape{DType::kF8E4M3, 150, 96, 1};
  PlainWeight weight = RandomWeight(shape, 17);
  weight.Code(133, 95) = 0x7f;
  const Packed packed(weight);
  const std::vector<BFloat16> x = RandomActivations(20 * shape.columns, 18);
  const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
  EXPECT_TRUE(std::isnan(expected[133]));
  EXPECT_FALSE(std::isnan(expected[132]));
  for (const MatmulPlan& plan : ClusterPlans(shape, 20)) {
    ExpectSameBits(expected, Multiply(packed.weight(), x, plan), shape.rows, DescribePlan(plan));
  }
}

// A few tokens' product in which a block has only some of its tiles' leaves.
MatmulPlan FewTokensPlan(const WeightShape& shape, int64_t tokens, int cluster_blocks) {
  MatmulPlan plan;
  plan.few_tokens = true;
  plan.token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : 4;
  plan.block_leaves = MakeMatmulLayout(shape).leaves / cluster_blocks;
  plan.parts = 1;
  plan.cluster_blocks = cluster_blocks;
  plan.slots = 2;
  plan.blocks = 3;
  plan.stage_steps = 4;
  return plan;
}

TEST(FewTokensClustersTest, HaveTheBitsOfOneBlockAndOfSumsThatPassThroughMemory) {
  for (const WeightShape& shape :
       {WeightShape{DType::kF8E4M3, 150, 8 * 72, 8}, WeightShape{DType::kBF16, 100, 8 * 40, 8},
        WeightShape{DType::kF8E4M3, 20, 2 * (4096 + 64), 2}}) {
    const Packed packed(RandomWeight(shape, 41));
    const int leaves = MakeMatmulLayout(shape).leaves;
    for (const int64_t tokens : {1, 8, 13, 21}) {
      const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, 42);
      const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
      for (int blocks = 2; blocks <= leaves; blocks *= 2) {
        MatmulPlan plan = FewTokensPlan(shape, tokens, blocks);
        const std::string what = Describe(shape, tokens) + DescribePlan(plan);
        ExpectSameBits(expected, Multiply(packed.weight(), x, plan, {.x = 3, .out = 5}), shape.rows,
                       what);
        std::swap(plan.parts, plan.cluster_blocks);
        ExpectSameBits(expected, Multiply(packed.weight(), x, plan), shape.rows,
                       what + " by parts");
        if (HasFatalFailure()) return;
      }
    }
  }
}

#ifdef MARCORO_SIMT
TEST(MatmulClustersTest, BitsDependOnNoOrderOfThreads) {
  const WeightShape shape{DType::kF8E4M3, 140, 4 * 160, 4};
  const Packed packed(RandomWeight(shape, 23));
  const std::vector<BFloat16> x = RandomActivations(20 * shape.columns, 24);
  const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    simt::SetSeed(seed);
    std::vector<MatmulPlan> plans = ClusterPlans(shape, 20);
    plans.push_back(FewTokensPlan(shape, 20, 4));
    for (const MatmulPlan& plan : plans) {
      ExpectSameBits(expected, Multiply(packed.weight(), x, plan), shape.rows,
                     "seed " + std::to_string(seed) + DescribePlan(plan));
    }
  }
}
#endif

constexpr MatmulLimits kH200 = {
    .multiprocessors = 132, .shared_bytes = 232448, .warpgroups = true, .clusters = {66, 32, 16}};

// A 7B model's weights: whole rounds, and what a multiprocessor needs under way many times over.
TEST(MatmulClustersPlanTest, KeepsMemoryBusyForBatches) {
  for (const int64_t tokens : {9, 16, 32, 64}) {
    for (const WeightShape& shape :
         {WeightShape{DType::kF8E4M3, 6144, 4096, 1}, WeightShape{DType::kF8E4M3, 4096, 4096, 8},
          WeightShape{DType::kF8E4M3, 28672, 4096, 1}, WeightShape{DType::kF8E4M3, 4096, 14336, 8},
          WeightShape{DType::kBF16, 32000, 4096, 1}}) {
      const MatmulPlan plan = PlanMatmul(shape, tokens, kH200);
      const std::string what = Describe(shape, tokens) + DescribePlan(plan);
      ASSERT_TRUE(plan.by_clusters) << what;
      EXPECT_EQ(plan.cluster_blocks, shape.segments == 8 ? 8 : 2) << what;
      EXPECT_EQ(PlanScratchBytes(plan, shape, tokens), 0) << what;
      EXPECT_LE(plan.shared_bytes, kH200.shared_bytes) << what;
      EXPECT_GE(plan.slots * plan.blocks * 64, shape.rows) << "one round" << what;
      // Two steps of every 16 rows in all stages but the one that is worked on.
      const int under_way =
          (plan.stages - 1) * plan.slots * 4 * 2 * 512 * static_cast<int>(SizeOf(shape.dtype));
      EXPECT_GE(under_way, 64 * 1024) << what;
    }
  }
}

TEST(MatmulClustersPlanTest, IsForNineToSixtyFourTokensWhereThereAreClusters) {
  const WeightShape shape{DType::kF8E4M3, 4096, 4096, 8};
  EXPECT_FALSE(PlanMatmul(shape, 8, kH200).by_clusters);
  EXPECT_TRUE(PlanMatmul(shape, 9, kH200).by_clusters);
  EXPECT_TRUE(PlanMatmul(shape, 64, kH200).by_clusters);
  EXPECT_FALSE(PlanMatmul(shape, 65, kH200).by_clusters);
  EXPECT_FALSE(PlanMatmul({DType::kF8E4M3, 4096, 16 * 256, 16}, 9, kH200).by_clusters);
  EXPECT_FALSE(PlanMatmul({DType::kF8E4M3, 4096, 8 * 48, 8}, 9, kH200).by_clusters);
  MatmulLimits limits = kH200;
  limits.clusters = {};
  EXPECT_FALSE(PlanMatmul(shape, 9, limits).by_clusters);
  limits = kH200;
  limits.warpgroups = false;
  EXPECT_FALSE(PlanMatmul(shape, 9, limits).by_clusters);
}

// Eight tokens' activations for down do not fit in one block.
TEST(MatmulClustersPlanTest, SumsOfAFewTokensMeetInClustersWhereThereAreSome) {
  const WeightShape down{DType::kF8E4M3, 4096, 14336, 8};
  MatmulLimits limits = kH200;
  EXPECT_EQ(PlanMatmul(down, 8, limits).cluster_blocks, 2);
  EXPECT_EQ(PlanMatmul(down, 8, limits).blocks, 66);
  EXPECT_EQ(PlanMatmul(down, 8, limits).parts, 1);
  limits.clusters = {};
  EXPECT_EQ(PlanMatmul(down, 8, limits).cluster_blocks, 1);
  EXPECT_EQ(PlanMatmul(down, 8, limits).parts, 2);
}

}  // namespace
}  // namespace marcoro::cuda
