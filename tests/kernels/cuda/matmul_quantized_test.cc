// Products of E4M3 weights with E4M3 activations by warps: the kernels for few and for many tokens
// (by warpgroups: matmul_codes_test.cc). What they give is compared with sums in double over all
// backends by tests/kernels; here is what plans are.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/cuda/code_products.h"

namespace marcoro::cuda {
namespace {

constexpr DType kF8 = DType::kF8E4M3;

MatmulPlan BestPlan(const WeightShape& shape, int64_t tokens) {
  return PlanMatmul(shape, tokens, DeviceMatmulLimits(), kF8);
}

// Different plans of both kernels, whatever suits the size best.
std::vector<MatmulPlan> AllPlans(const WeightShape& shape, int64_t tokens) {
  std::vector<MatmulPlan> plans;
  for (const int multiprocessors : {1, 3, 1000}) {
    for (const int shared_kilobytes : {227, 99}) {
      for (const int64_t planned_tokens : {tokens, int64_t{33}, int64_t{65}}) {
        const MatmulPlan plan = PlanMatmul(
            shape, planned_tokens,
            {.multiprocessors = multiprocessors, .shared_bytes = shared_kilobytes * 1024}, kF8);
        if (std::find(plans.begin(), plans.end(), plan) == plans.end()) plans.push_back(plan);
      }
    }
  }
  return plans;
}

TEST(CudaQuantizedMatmulTest, BitsDependOnNoPlanAndNoNumberOfTokens) {
  for (const WeightShape& shape :
       {WeightShape{kF8, 100, 8 * 80, 8}, WeightShape{kF8, 40, 300, 1},
        WeightShape{kF8, 20, 4096 + 64, 1}, WeightShape{kF8, 33, 32 * 8, 32}}) {
    constexpr int64_t kTokens = 140;
    const Packed packed(RandomWeight(shape, 7), 64, kF8);
    const CodeInput input = RandomCodeInput(kTokens, shape, 8);
    const std::vector<float> all = MultiplyCodes(packed.weight(), input, BestPlan(shape, kTokens));
    for (const int64_t tokens : {1, 8, 17, 33, 65}) {
      const std::vector<float> out =
          MultiplyCodes(packed.weight(), input.Rows(kTokens - tokens, kTokens, shape),
                        BestPlan(shape, tokens), {.x = 3});
      ExpectSameBits({all.end() - tokens * shape.rows, all.end()}, out, shape.rows,
                     Describe(shape, tokens));
      if (HasFatalFailure()) return;
    }
    for (const int64_t tokens : {3, 20}) {
      for (const MatmulPlan& plan : AllPlans(shape, tokens)) {
        ExpectSameBits({all.begin(), all.begin() + tokens * shape.rows},
                       MultiplyCodes(packed.weight(), input.Rows(0, tokens, shape), plan),
                       shape.rows,
                       Describe(shape, tokens) + ", leaves " + std::to_string(plan.block_leaves) +
                           (plan.few_tokens ? ", few" : ", many"));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Long segments are cut in two, and their tree continues that of the segments.
TEST(CudaQuantizedMatmulTest, LongSegmentsKeepTheTreeAtEveryDegreeOfParallelism) {
  const WeightShape shape{kF8, 18, 2 * 4096, 2};
  const PlainWeight weight = RandomWeight(shape, 21);
  const CodeInput input = RandomCodeInput(2, shape, 22);
  const std::vector<float> whole =
      MultiplyCodes(Packed(weight, 64, kF8).weight(), input, BestPlan(shape, 2));
  std::vector<std::vector<float>> parts;
  for (int rank = 0; rank < 2; ++rank) {
    const PlainWeight shard = weight.Shard(rank, 2);
    const CodeInput mine = input.Shard(rank, 2, shape);
    parts.push_back(MultiplyCodes(Packed(shard, 64, kF8).weight(), mine, BestPlan(shard.shape, 2)));
  }
  ExpectSameBits(TreeSum(parts), whole, shape.rows, "ranks 2");
}

// A tile's leaves in several blocks, down to half of a segment each: their sums meet in a cluster.
TEST(CudaQuantizedMatmulTest, ClustersHaveTheBitsOfOneBlock) {
  const WeightShape shape{kF8, 40, 2 * (4096 + 64), 2};
  constexpr int64_t kTokens = 3;
  const Packed packed(RandomWeight(shape, 31), 64, kF8);
  const CodeInput input = RandomCodeInput(kTokens, shape, 32);
  MatmulPlan plan = PlanMatmul(
      shape, kTokens, {.multiprocessors = 2, .shared_bytes = 227 * 1024, .clusters = {}}, kF8);
  const std::vector<float> expected = MultiplyCodes(packed.weight(), input, plan);
  for (const int blocks : {2, 4}) {
    plan.block_leaves = 4 / blocks;
    plan.parts = 1;
    plan.cluster_blocks = blocks;
    ExpectSameBits(expected, MultiplyCodes(packed.weight(), input, plan), shape.rows,
                   "clusters of " + std::to_string(blocks));
  }
}

// 128 products of 256 · 256 are 2^23, where floats are 1 apart. Four halves, one in each 32
// columns, would be lost one by one; their own sum is not.
TEST(CudaQuantizedMatmulTest, EverySumOf128ColumnsBeginsAtZero) {
  constexpr uint8_t kHalf = 0x30;
  constexpr uint8_t kOne = 0x38;
  constexpr uint8_t k256 = 0x78;
  PlainWeight weight({kF8, 1, 256, 1});
  std::fill(weight.bytes.begin(), weight.bytes.end(), kOne);
  CodeInput input = {std::vector<uint8_t>(256, 0), {1.0f}};
  for (size_t i = 0; i < 128; ++i) weight.bytes[i] = input.codes[i] = k256;
  for (size_t i = 128; i < 256; i += 32) input.codes[i] = kHalf;
  const Packed packed(weight, 64, kF8);
  for (const MatmulPlan& plan : AllPlans(weight.shape, 1)) {
    EXPECT_EQ(MultiplyCodes(packed.weight(), input, plan)[0], 8388610.0f)
        << (plan.few_tokens ? "few" : "many");
  }
}

#ifdef MARCORO_SIMT
// The emulator's order of threads is another with every seed.
TEST(CudaQuantizedMatmulTest, BitsDependOnNoOrderOfThreads) {
  const WeightShape shape{kF8, 100, 4 * 160, 4};
  const PlainWeight weight = RandomWeight(shape, 23);
  for (const int64_t tokens : {5, 70}) {
    const CodeInput input = RandomCodeInput(tokens, shape, 24);
    const MatmulPlan plan = BestPlan(shape, tokens);
    const std::vector<float> expected =
        MultiplyCodes(Packed(weight, 64, kF8).weight(), input, plan);
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      simt::SetSeed(seed);
      ExpectSameBits(expected, MultiplyCodes(Packed(weight, 64, kF8).weight(), input, plan),
                     shape.rows, "seed " + std::to_string(seed));
    }
  }
}
#endif

// The weights of a 7B model, on devices with much and with little shared memory.
TEST(QuantizedMatmulPlanTest, FitsTheDeviceAndItsScratchMemory) {
  for (const WeightShape& shape :
       {WeightShape{kF8, 6144, 4096, 1}, WeightShape{kF8, 4096, 4096, 8},
        WeightShape{kF8, 28672, 4096, 1}, WeightShape{kF8, 4096, 14336, 8},
        WeightShape{kF8, 4096, 512, 1}}) {
    for (const MatmulLimits& limits : {MatmulLimits{132, 232448, /*warpgroups=*/true},
                                       MatmulLimits{108, 166912}, MatmulLimits{84, 101376}}) {
      for (const int64_t tokens : {1, 8, 32, 33, 65, 2048}) {
        const MatmulPlan plan = PlanMatmul(shape, tokens, limits, kF8);
        EXPECT_LE(plan.shared_bytes, limits.shared_bytes) << Describe(shape, tokens);
        EXPECT_EQ(plan.activations, kF8);
        EXPECT_EQ(plan.warpgroup_tiles, 0) << "those of BF16 say nothing of codes";
      }
    }
    for (const int64_t most : {40, 2048}) {
      const size_t scratch = MatmulScratchBytes(shape, most, kF8);
      for (int64_t tokens = 1; tokens <= most; ++tokens) {
        ASSERT_LE(PlanScratchBytes(BestPlan(shape, tokens), shape, tokens), scratch)
            << Describe(shape, tokens);
      }
    }
  }
}

}  // namespace
}  // namespace marcoro::cuda
