// Many tokens by products of warpgroups: the same bits as by those of warps, and the probe that
// makes sure of it.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/cuda/matmul_probe.h"
#include "tests/kernels/cuda/matmul_harness.h"

namespace marcoro::cuda {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

MatmulLimits Limits(int multiprocessors, bool warpgroups) {
  return {.multiprocessors = multiprocessors, .shared_bytes = 227 * 1024, .warpgroups = warpgroups};
}

// Plans for warpgroups of large and small blocks, with few and with many parts.
std::vector<MatmulPlan> WarpgroupPlans(const WeightShape& shape, int64_t tokens) {
  std::vector<MatmulPlan> plans;
  for (const int multiprocessors : {1, 3, 6, 1000}) {
    // Those for many tokens are right for few as well.
    const MatmulPlan plan =
        PlanMatmul(shape, tokens > 64 ? tokens : 65, Limits(multiprocessors, /*warpgroups=*/true));
    EXPECT_GT(plan.warpgroup_tiles, 0);
    if (std::find(plans.begin(), plans.end(), plan) == plans.end()) plans.push_back(plan);
  }
  return plans;
}

std::string DescribePlan(const MatmulPlan& plan) {
  return ", " + std::to_string(plan.warpgroup_tiles) + " products of a warpgroup, " +
         std::to_string(plan.block_leaves) + " leaves of a block";
}

std::vector<float> MultiplyByWarps(const PackedWeight& weight, const std::vector<BFloat16>& x) {
  const auto tokens = static_cast<int64_t>(x.size()) / weight.shape.columns;
  return Multiply(weight, x, PlanMatmul(weight.shape, tokens, Limits(4, /*warpgroups=*/false)));
}

void ExpectTheBitsOfWarps(const WeightShape& shape, int64_t tokens, uint32_t seed) {
  const Packed packed(RandomWeight(shape, seed));
  const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, seed + 1);
  const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
  for (const MatmulPlan& plan : WarpgroupPlans(shape, tokens)) {
    ExpectSameBits(expected, Multiply(packed.weight(), x, plan, {.x = 8, .out = 5}), shape.rows,
                   Describe(shape, tokens) + DescribePlan(plan));
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(MatmulWarpgroupsTest, HasTheBitsOfWarpsForRaggedRowsAndTokens) {
  uint32_t seed = 1;
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const int64_t rows : {1, 70, 128, 300}) {
      for (const int64_t tokens : {1, 65, 130}) {
        ExpectTheBitsOfWarps({dtype, rows, 96, 1}, tokens, seed += 2);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Segments that fill no stage of 64 or 128 columns, in trees of every depth, beyond the ring of
// stages, and cut in two.
TEST(MatmulWarpgroupsTest, HasTheBitsOfWarpsForEverySegment) {
  uint32_t seed = 100;
  for (const int64_t segment_columns : {32, 64, 160, 256}) {
    for (const int segments : {1, 2, 4, 8, 16}) {
      ExpectTheBitsOfWarps({DType::kF8E4M3, 40, segments * segment_columns, segments}, 70,
                           seed += 2);
      if (HasFatalFailure()) return;
    }
  }
  ExpectTheBitsOfWarps({DType::kBF16, 40, 4 * 96, 4}, 70, seed += 2);
  ExpectTheBitsOfWarps({DType::kF8E4M3, 20, 4096 + 64, 1}, 3, seed += 2);
}

TEST(MatmulWarpgroupsTest, NonFiniteActivationsStayInTheirTokenAndLeaf) {
  const WeightShape shape{DType::kF8E4M3, 40, 2 * 96, 2};
  constexpr int64_t kTokens = 70;
  const Packed packed(RandomWeight(shape, 15));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY}) {
    // The first column behind a leaf lies in the stage that the leaf ends with.
    for (const size_t column : {95u, 96u}) {
      std::vector<BFloat16> x = RandomActivations(kTokens * shape.columns, 16);
      x[33 * 192 + column] = ToBFloat16(bad);
      const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
      for (const MatmulPlan& plan : WarpgroupPlans(shape, kTokens)) {
        ExpectSameBits(expected, Multiply(packed.weight(), x, plan), shape.rows,
                       DescribePlan(plan));
      }
    }
  }
}

TEST(MatmulWarpgroupsTest, NaNWeightsStayInTheirRow) {
  const WeightShape shape{DType::kF8E4M3, 150, 96, 1};
  PlainWeight weight = RandomWeight(shape, 17);
  weight.Code(133, 95) = 0x7f;
  const Packed packed(weight);
  const std::vector<BFloat16> x = RandomActivations(70 * shape.columns, 18);
  const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
  EXPECT_TRUE(std::isnan(expected[133]));
  EXPECT_FALSE(std::isnan(expected[132]));
  for (const MatmulPlan& plan : WarpgroupPlans(shape, 70)) {
    ExpectSameBits(expected, Multiply(packed.weight(), x, plan), shape.rows, DescribePlan(plan));
  }
}

TEST(MatmulWarpgroupsTest, LeavesOfHalfAStepAreLeftToWarps) {
  EXPECT_EQ(PlanMatmul({DType::kF8E4M3, 100, 48, 1}, 100, Limits(132, true)).warpgroup_tiles, 0);
  EXPECT_EQ(PlanMatmul({DType::kF8E4M3, 100, 64, 1}, 100, Limits(132, false)).warpgroup_tiles, 0);
}

// Prefill of a 7B model on a GPU of 132 multiprocessors: large blocks where the tree is flat, and
// no sums that pass through memory.
TEST(MatmulWarpgroupsTest, PlansForTwoThousandTokens) {
  for (const WeightShape& shape :
       {WeightShape{DType::kF8E4M3, 6144, 4096, 1}, WeightShape{DType::kF8E4M3, 28672, 4096, 1},
        WeightShape{DType::kF8E4M3, 4096, 4096, 8}, WeightShape{DType::kF8E4M3, 4096, 14336, 8}}) {
    const MatmulPlan plan = PlanMatmul(shape, 2048, Limits(132, true));
    EXPECT_EQ(plan.parts, 1) << Describe(shape, 2048);
    EXPECT_EQ(plan.warpgroup_tiles, shape.segments == 1 ? 2 : 1) << Describe(shape, 2048);
    EXPECT_LE(plan.shared_bytes, 232448);
  }
}

// What Matmul itself does with 70 tokens.
std::vector<float> MultiplyByMatmul(const Packed& packed, const std::vector<BFloat16>& x) {
  const WeightShape& shape = packed.weight().shape;
  const auto tokens = static_cast<int64_t>(x.size()) / shape.columns;
  const DeviceArray<BFloat16> device_x(absl::MakeConstSpan(x));
  const DeviceArray<float> out(static_cast<size_t>(tokens * shape.rows));
  const DeviceArray<char> scratch(MatmulScratchBytes(shape, tokens));
  Matmul(TestStream(), Tensor(device_x.data(), DType::kBF16, tokens, shape.columns),
         packed.weight(), Tensor(out.data(), DType::kF32, tokens, shape.rows), scratch.data());
  return out.ToHost();
}

#ifdef MARCORO_SIMT
constexpr int kRounds = 1;

TEST(MatmulProbeTest, ChoosesWarpgroupsWhereTheyHaveTheSameBits) {
  const auto log = ProbeMatmul(TestStream(), kRounds);
  CheckDevice(log.status());
  EXPECT_THAT(*log, HasSubstr("wgmma (it has the bits of mma.sync here)"));
  EXPECT_TRUE(MultipliesByWarpgroups(0));
}

TEST(MatmulProbeTest, ChoosesWarpsWhereWarpgroupsRoundInAnotherWay) {
  const simt::TruncatedWarpgroupProducts truncated;
  const auto log = ProbeMatmul(TestStream(), kRounds);
  CheckDevice(log.status());
  EXPECT_THAT(*log, HasSubstr("mma.sync (wgmma has other bits here; E4M3 weights"));
  EXPECT_FALSE(MultipliesByWarpgroups(0));
}

// Truncated products show which were used.
TEST(MatmulProbeTest, DecidesWhatMatmulUses) {
  const WeightShape shape{DType::kF8E4M3, 100, 256, 1};
  const Packed packed(RandomWeight(shape, 31));
  const std::vector<BFloat16> x = RandomActivations(70 * shape.columns, 32);
  const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
  CheckDevice(ProbeMatmul(TestStream(), kRounds).status());
  ExpectSameBits(expected, MultiplyByMatmul(packed, x), shape.rows, "wgmma");
  {
    const simt::TruncatedWarpgroupProducts truncated;
    EXPECT_NE(expected, MultiplyByMatmul(packed, x));
    CheckDevice(ProbeMatmul(TestStream(), kRounds).status());
    ExpectSameBits(expected, MultiplyByMatmul(packed, x), shape.rows, "mma.sync");
  }
}

TEST(MatmulWarpgroupsTest, BitsDependOnNoOrderOfThreads) {
  const WeightShape shape{DType::kF8E4M3, 140, 4 * 160, 4};
  const Packed packed(RandomWeight(shape, 23));
  const std::vector<BFloat16> x = RandomActivations(70 * shape.columns, 24);
  const std::vector<float> expected = MultiplyByWarps(packed.weight(), x);
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    simt::SetSeed(seed);
    for (const MatmulPlan& plan : WarpgroupPlans(shape, 70)) {
      ExpectSameBits(expected, Multiply(packed.weight(), x, plan), shape.rows,
                     "seed " + std::to_string(seed) + DescribePlan(plan));
    }
  }
}
#else
// On a GPU either answer is right; the bits are those of warps in any case.
TEST(MatmulProbeTest, MatmulHasTheBitsOfWarpsWhateverItFinds) {
  const auto log = ProbeMatmul(TestStream());
  CheckDevice(log.status());
  EXPECT_THAT(*log, StartsWith("matmul of many tokens: "));
  RecordProperty("probe", *log);
  const WeightShape shape{DType::kF8E4M3, 500, 8 * 512, 8};
  const Packed packed(RandomWeight(shape, 31));
  const std::vector<BFloat16> x = RandomActivations(300 * shape.columns, 32);
  ExpectSameBits(MultiplyByWarps(packed.weight(), x), MultiplyByMatmul(packed, x), shape.rows,
                 *log);
}
#endif

}  // namespace
}  // namespace marcoro::cuda
