// Products of codes by warpgroups: the same bits for every number of tokens, plan and rank, and the
// probe that makes sure of it. The emulator rounds products of warps and of warpgroups alike, so
// that the kernels of warps, which matmul_quantized_test.cc and the op tests are about, say what is
// right.
#include "kernels/cuda/matmul_codes.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "kernels/cuda/matmul_codes_probe.h"
#include "kernels/cuda/matmul_probe.h"
#include "tests/kernels/cuda/code_products.h"

namespace marcoro::cuda {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr DType kF8 = DType::kF8E4M3;

MatmulLimits Limits(int multiprocessors, bool code_warpgroups) {
  return {.multiprocessors = multiprocessors,
          .shared_bytes = 227 * 1024,
          .code_warpgroups = code_warpgroups};
}

MatmulPlan PlanFor(const WeightShape& shape, int64_t tokens, int multiprocessors = 4) {
  const MatmulPlan plan = PlanMatmul(shape, tokens, Limits(multiprocessors, true), kF8);
  EXPECT_TRUE(plan.code_warpgroups);
  return plan;
}

// Needed by the emulator's tests alone.
[[maybe_unused]] std::vector<float> MultiplyByWarps(const PackedWeight& weight,
                                                    const CodeInput& input) {
  const auto tokens = static_cast<int64_t>(input.codes.size()) / weight.shape.columns;
  return MultiplyCodes(weight, input, PlanMatmul(weight.shape, tokens, Limits(4, false), kF8));
}

std::string DescribePlan(const MatmulPlan& plan) {
  return ", " + std::to_string(plan.block_leaves) + " leaves and " +
         std::to_string(plan.token_tiles) + " x 8 tokens of a block, " +
         (plan.few_tokens ? std::to_string(plan.slots) + " slots"
                          : std::to_string(plan.warpgroup_tiles) + " tiles of a warpgroup");
}

// Plans for devices of different sizes, and those for more tokens: all are right for fewer.
std::vector<MatmulPlan> AllPlans(const WeightShape& shape, int64_t tokens) {
  std::vector<MatmulPlan> plans;
  for (const int multiprocessors : {1, 6, 1000}) {
    for (const int64_t planned : {tokens, int64_t{32}, int64_t{40}, int64_t{100}}) {
      if (planned < tokens) continue;
      const MatmulPlan plan = PlanFor(shape, planned, multiprocessors);
      if (std::find(plans.begin(), plans.end(), plan) == plans.end()) plans.push_back(plan);
    }
  }
  return plans;
}

// On a GPU the sums of warps are others: there the plan for many tokens says what is right.
std::vector<float> Expected(const PackedWeight& weight, const CodeInput& input) {
#ifdef MARCORO_SIMT
  return MultiplyByWarps(weight, input);
#else
  return MultiplyCodes(weight, input, PlanFor(weight.shape, 100));
#endif
}

class CodesMatmulTest : public ::testing::Test {
 protected:
  void SetUp() override {
    static const bool has_warpgroups = [] {
      const auto found = HasWarpgroups(TestStream());
      CheckDevice(found.status());
      return *found;
    }();
    if (!has_warpgroups) GTEST_SKIP() << "no wgmma for this GPU";
  }
};

void ExpectTheBitsOfAll(const WeightShape& shape, int64_t tokens, uint32_t seed) {
  const Packed packed(RandomWeight(shape, seed), 64, kF8);
  const CodeInput input = RandomCodeInput(tokens, shape, seed + 1);
  const std::vector<float> expected = Expected(packed.weight(), input);
  const Gaps gaps = {.x = 16 + (16 - shape.columns % 16) % 16, .out = 5};
  for (const MatmulPlan& plan : AllPlans(shape, tokens)) {
    ExpectSameBits(expected, MultiplyCodes(packed.weight(), input, plan, gaps), shape.rows,
                   Describe(shape, tokens) + DescribePlan(plan));
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST_F(CodesMatmulTest, BitsDependOnNoPlanForRaggedRowsAndTokens) {
  uint32_t seed = 1;
  for (const int64_t rows : {1, 70, 300}) {
    for (const int64_t tokens : {11, 130}) {
      ExpectTheBitsOfAll({kF8, rows, 96, 1}, tokens, seed += 2);
      if (HasFatalFailure()) return;
    }
  }
}

// Segments of less than a step, of no whole steps or groups of four, in trees of every depth,
// beyond the ring of stages, and cut in two.
TEST_F(CodesMatmulTest, BitsDependOnNoPlanForEverySegment) {
  uint32_t seed = 100;
  for (const int64_t segment_columns : {3, 80, 160}) {
    for (const int segments : {1, 2, 4, 8, 16}) {
      ExpectTheBitsOfAll({kF8, 40, segments * segment_columns, segments}, 7, seed += 2);
      if (HasFatalFailure()) return;
    }
  }
  ExpectTheBitsOfAll({kF8, 40, 8 * 144, 8}, 70, seed += 2);
  ExpectTheBitsOfAll({kF8, 20, 2 * 4160, 2}, 3, seed += 2);
}

TEST_F(CodesMatmulTest, ATokensBitsDependOnNoOtherToken) {
  constexpr int64_t kTokens = 140;
  const WeightShape shape{kF8, 90, 4 * 136, 4};
  const Packed packed(RandomWeight(shape, 7), 64, kF8);
  const CodeInput input = RandomCodeInput(kTokens, shape, 8);
  const std::vector<float> all = MultiplyCodes(packed.weight(), input, PlanFor(shape, kTokens));
  for (const int64_t tokens : {1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129}) {
    const std::vector<float> some = MultiplyCodes(
        packed.weight(), input.Rows(kTokens - tokens, kTokens, shape), PlanFor(shape, tokens));
    ExpectSameBits({all.end() - tokens * shape.rows, all.end()}, some, shape.rows,
                   Describe(shape, tokens));
    if (HasFatalFailure()) return;
  }
}

TEST_F(CodesMatmulTest, RanksGiveTheBitsOfOne) {
  for (const WeightShape& shape :
       {WeightShape{kF8, 20, 8 * 40, 8}, WeightShape{kF8, 18, 8 * 160, 8}}) {
    const PlainWeight weight = RandomWeight(shape, 21);
    for (const int64_t tokens : {1, 20, 40}) {
      const CodeInput input = RandomCodeInput(tokens, shape, 22);
      const std::vector<float> whole =
          MultiplyCodes(Packed(weight, 64, kF8).weight(), input, PlanFor(shape, tokens));
      for (const int ranks : {2, 4, 8}) {
        std::vector<std::vector<float>> parts;
        for (int rank = 0; rank < ranks; ++rank) {
          const PlainWeight shard = weight.Shard(rank, ranks);
          parts.push_back(
              MultiplyCodes(Packed(shard, 64, kF8).weight(), input.Shard(rank, ranks, shape),
                            PlanFor(shard.shape, tokens), {.x = 16 - shard.shape.columns % 16}));
        }
        ExpectSameBits(TreeSum(parts), whole, shape.rows, std::to_string(ranks) + " ranks");
      }
    }
  }
}

// 128 products of 256 · 256 are 2^23, where floats are 1 apart. Four halves, one in each 32
// columns, would be lost one by one; their own sum is not.
TEST_F(CodesMatmulTest, EverySumOf128ColumnsBeginsAtZero) {
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
    EXPECT_EQ(MultiplyCodes(packed.weight(), input, plan)[0], 8388610.0f) << DescribePlan(plan);
  }
}

TEST_F(CodesMatmulTest, NanStaysInItsRowAndInItsToken) {
  const WeightShape shape{kF8, 150, 2 * 96, 2};
  PlainWeight weight = RandomWeight(shape, 17);
  weight.Code(133, 95) = 0x7f;
  const Packed packed(weight, 64, kF8);
  for (const int64_t tokens : {3, 70}) {
    CodeInput input = RandomCodeInput(tokens, shape, 18);
    input.scales[2] = NAN;  // token 1, whose codes there are zeros
    std::fill_n(input.codes.begin() + shape.columns, shape.columns / 2, uint8_t{0});
    for (const MatmulPlan& plan : AllPlans(shape, tokens)) {
      const std::vector<float> out = MultiplyCodes(packed.weight(), input, plan);
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_EQ(std::isnan(out[i]), i % 150 == 133 || i / 150 == 1) << i << DescribePlan(plan);
      }
    }
  }
}

// What MultiplyQuantized itself does.
std::vector<float> MultiplyAsBackend(const Packed& packed, const CodeInput& input,
                                     const Gaps& gaps = {}) {
  const WeightShape& shape = packed.weight().shape;
  return RunCodeProduct(
      shape, input, gaps, [&](const Tensor& x, const Tensor& scales, const Tensor& out) {
        const DeviceArray<char> scratch(MatmulScratchBytes(shape, x.rows, kF8));
        MultiplyQuantized(TestStream(), {x, scales}, packed.weight(), out, scratch.data());
        CheckDevice(Synchronize(TestStream()));
      });
}

TEST_F(CodesMatmulTest, RowsThatAreNotAlignedHaveTheSameBits) {
  CheckDevice(ProbeCodes(TestStream(), /*rounds=*/1).status());
  for (const WeightShape& shape : {WeightShape{kF8, 50, 8 * 24, 8}, WeightShape{kF8, 50, 70, 1}}) {
    const Packed packed(RandomWeight(shape, 41), 64, kF8);
    for (const int64_t tokens : {5, 75}) {
      const CodeInput input = RandomCodeInput(tokens, shape, 42);
      ExpectSameBits(Expected(packed.weight(), input), MultiplyAsBackend(packed, input, {.x = 3}),
                     shape.rows, Describe(shape, tokens));
    }
  }
}

// The weights of a 7B model, and rows that are too long for shared memory or devices with too
// little of it, which are left to warps whatever the number of tokens.
TEST(CodesPlanTest, FitsTheDeviceAndItsScratchMemory) {
  for (const WeightShape& shape :
       {WeightShape{kF8, 6144, 4096, 1}, WeightShape{kF8, 4096, 4096, 8},
        WeightShape{kF8, 28672, 4096, 1}, WeightShape{kF8, 4096, 14336, 8},
        WeightShape{kF8, 4096, 512, 1}, WeightShape{kF8, 4096, 20000, 1}}) {
    for (const int64_t most : {40, 2048}) {
      const size_t scratch = MatmulScratchBytes(shape, most, kF8);
      for (int64_t tokens = 1; tokens <= most; ++tokens) {
        const MatmulPlan plan = PlanFor(shape, tokens, 132);
        ASSERT_LE(plan.shared_bytes, 227 * 1024) << Describe(shape, tokens);
        ASSERT_LE(PlanScratchBytes(PlanFor(shape, tokens), shape, tokens), scratch)
            << Describe(shape, tokens);
      }
    }
  }
  const WeightShape long_rows{kF8, 64, 40000 - 32, 1};
  const WeightShape usual{kF8, 6144, 16384, 1};
  MatmulLimits small = Limits(132, true);
  small.shared_bytes = 64 * 1024;
  for (const int64_t tokens : {1, 2048}) {
    EXPECT_FALSE(PlanMatmul(long_rows, tokens, Limits(132, true), kF8).code_warpgroups);
    EXPECT_FALSE(SuitsWarpgroupCodes(MakeMatmulLayout(usual), small));
  }
}

// On a GPU of 132 multiprocessors: enough weights under way for one token; large blocks where the
// tree is flat, and no sums that pass through memory, for two thousand.
TEST(CodesPlanTest, PlansForA7BModel) {
  for (const WeightShape& shape :
       {WeightShape{kF8, 6144, 4096, 1}, WeightShape{kF8, 28672, 4096, 1},
        WeightShape{kF8, 4096, 4096, 8}, WeightShape{kF8, 4096, 14336, 8}}) {
    for (const int64_t tokens : {1, 8, 32}) {
      const MatmulPlan few = PlanFor(shape, tokens, 132);
      EXPECT_TRUE(few.few_tokens) << Describe(shape, tokens);
      const int under_way =
          few.slots * few.block_leaves * (kRingStages - 1) * few.stage_steps * StepBytes(kF8);
      EXPECT_GE(under_way, (tokens == 1 ? 48 : 24) * 1024) << Describe(shape, tokens);
    }
    const MatmulPlan many = PlanFor(shape, 2048, 132);
    EXPECT_EQ(many.parts, 1) << Describe(shape, 2048);
    EXPECT_EQ(many.warpgroup_tiles, shape.segments == 1 ? 2 : 1) << Describe(shape, 2048);
  }
}

#ifdef MARCORO_SIMT
constexpr int kRounds = 1;

TEST(CodesProbeTest, WarpgroupsMayHaveBitsOfTheirOwn) {
  const simt::TruncatedWarpgroupProducts truncated;
  const auto log = ProbeCodes(TestStream(), kRounds);
  CheckDevice(log.status());
  EXPECT_EQ(*log, "matmul of codes: wgmma");
  const WeightShape shape{kF8, 100, 256, 1};
  const Packed packed(RandomWeight(shape, 31), 64, kF8);
  const CodeInput input = RandomCodeInput(70, shape, 32);
  const std::vector<float> all = MultiplyAsBackend(packed, input);
  EXPECT_NE(all, MultiplyByWarps(packed.weight(), input));
  ExpectSameBits({all.begin(), all.begin() + 3 * shape.rows},
                 MultiplyAsBackend(packed, input.Rows(0, 3, shape)), shape.rows, "3 tokens");
}

TEST(CodesProbeTest, ChoosesWarpsWhereBitsDependOnTheNumberOfTokens) {
  const simt::TruncatedWarpgroupProducts truncated(/*least_columns=*/64);
  const auto log = ProbeCodes(TestStream(), kRounds);
  CheckDevice(log.status());
  EXPECT_THAT(*log, StartsWith("matmul of codes: mma.sync (wgmma: all codes: "));
  EXPECT_THAT(*log, HasSubstr("tokens have bits of their own"));
  EXPECT_FALSE(MultipliesCodesByWarpgroups(0));
  const WeightShape shape{kF8, 100, 256, 1};
  const Packed packed(RandomWeight(shape, 31), 64, kF8);
  const CodeInput input = RandomCodeInput(70, shape, 32);
  ExpectSameBits(MultiplyByWarps(packed.weight(), input), MultiplyAsBackend(packed, input),
                 shape.rows, "mma.sync");
}

TEST_F(CodesMatmulTest, BitsDependOnNoOrderOfThreads) {
  const WeightShape shape{kF8, 140, 4 * 160, 4};
  const Packed packed(RandomWeight(shape, 23), 64, kF8);
  for (const int64_t tokens : {5, 70}) {
    const CodeInput input = RandomCodeInput(tokens, shape, 24);
    const std::vector<float> expected = MultiplyByWarps(packed.weight(), input);
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      simt::SetSeed(seed);
      for (const MatmulPlan& plan : AllPlans(shape, tokens)) {
        ExpectSameBits(expected, MultiplyCodes(packed.weight(), input, plan), shape.rows,
                       "seed " + std::to_string(seed) + DescribePlan(plan));
      }
    }
  }
}
#else
// On a GPU either answer is right.
TEST(CodesProbeTest, SaysWhatItFound) {
  const auto log = ProbeCodes(TestStream());
  CheckDevice(log.status());
  EXPECT_THAT(*log, StartsWith("matmul of codes: "));
  RecordProperty("probe", *log);
}
#endif

}  // namespace
}  // namespace marcoro::cuda
