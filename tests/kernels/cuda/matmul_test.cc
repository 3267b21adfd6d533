// The CUDA matmul: packing, the kernels for few and for many tokens, and their plans.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/cuda/matmul_harness.h"

namespace marcoro::cuda {
namespace {

// Different plans of both kernels, whatever suits the size best.
std::vector<MatmulPlan> AllPlans(const WeightShape& shape, int64_t tokens) {
  std::vector<MatmulPlan> plans;
  for (const int multiprocessors : {1, 3, 1000}) {
    for (const int shared_kilobytes : {227, 99}) {
      // Those for many tokens are right for few as well.
      for (const int64_t planned_tokens : {tokens, int64_t{33}, int64_t{65}}) {
        const MatmulLimits limits = {.multiprocessors = multiprocessors,
                                     .shared_bytes = shared_kilobytes * 1024};
        const MatmulPlan plan = PlanMatmul(shape, planned_tokens, limits);
        if (std::find(plans.begin(), plans.end(), plan) == plans.end()) plans.push_back(plan);
      }
    }
  }
  return plans;
}

TEST(CudaMatmulTest, DecodesEveryE4M3CodeExactly) {
  constexpr int kColumns = 37;
  for (int column = 0; column < kColumns; ++column) {
    PlainWeight weight({DType::kF8E4M3, 256, kColumns, 1});
    for (int row = 0; row < 256; ++row) weight.Code(row, column) = static_cast<uint8_t>(row);
    const Packed packed(weight);
    const std::vector<float> out =
        Multiply(packed.weight(), std::vector<BFloat16>(kColumns, ToBFloat16(1.0f)));
    for (int code = 0; code < 256; ++code) {
      if ((code & 0x7f) == 0x7f) {
        EXPECT_TRUE(std::isnan(out[static_cast<size_t>(code)])) << code;
      } else {
        EXPECT_EQ(out[static_cast<size_t>(code)],
                  reference::E4M3ToFloat(static_cast<uint8_t>(code)))
            << code << " in column " << column;
      }
    }
  }
}

TEST(CudaMatmulTest, MatchesPlainSumsForRaggedSizes) {
  uint32_t seed = 1;
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const int64_t rows : {1, 15, 17, 64, 97, 300}) {
      for (const int64_t segment_columns : {1, 3, 22, 64, 131}) {
        for (const int segments : {1, 2, 8}) {
          const WeightShape shape{dtype, rows, segment_columns * segments, segments};
          const PlainWeight weight = RandomWeight(shape, ++seed);
          const Packed packed(weight);
          const int64_t tokens = 1 + seed * 7 % 40;
          const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, ++seed);
          const Gaps gaps = {.x = seed % 3 == 0 ? 8 : 3, .out = 5};
          const std::vector<float> out = Multiply(packed.weight(), x, gaps);
          ExpectNearPlainSums(weight, x, out, Describe(shape, tokens));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(CudaMatmulTest, BitsDependOnNoPlanAndNoNumberOfTokens) {
  for (const WeightShape& shape :
       {WeightShape{DType::kF8E4M3, 100, 8 * 72, 8}, WeightShape{DType::kF8E4M3, 40, 300, 1},
        WeightShape{DType::kF8E4M3, 20, 4096 + 64, 1}, WeightShape{DType::kBF16, 70, 4 * 40, 4},
        WeightShape{DType::kF8E4M3, 33, 32 * 8, 32}}) {
    constexpr int64_t kTokens = 200;
    const Packed packed(RandomWeight(shape, 7));
    const std::vector<BFloat16> x = RandomActivations(kTokens * shape.columns, 8);
    const std::vector<float> all = Multiply(packed.weight(), x);
    for (const int64_t tokens : {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 129}) {
      // The last rows: others than those of the same place among all.
      const std::vector<float> out =
          Multiply(packed.weight(), {x.end() - tokens * shape.columns, x.end()});
      ExpectSameBits({all.end() - tokens * shape.rows, all.end()}, out, shape.rows,
                     Describe(shape, tokens));
      if (HasFatalFailure()) return;
    }
    for (const int64_t tokens : {3, 20}) {
      for (const MatmulPlan& plan : AllPlans(shape, tokens)) {
        const std::vector<float> out =
            Multiply(packed.weight(), {x.begin(), x.begin() + tokens * shape.columns}, plan);
        ExpectSameBits({all.begin(), all.begin() + tokens * shape.rows}, out, shape.rows,
                       Describe(shape, tokens) + ", leaves " + std::to_string(plan.block_leaves) +
                           (plan.few_tokens ? ", few" : ", many"));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CudaMatmulTest, SegmentsAreSummedInTheBalancedTreeAtEveryDegreeOfParallelism) {
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const int64_t segment_columns : {22, 64}) {
      for (const int64_t tokens : {1, 3, 35}) {
        const WeightShape shape{dtype, 50, 8 * segment_columns, 8};
        const PlainWeight weight = RandomWeight(shape, 13);
        const Packed packed(weight);
        const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, 14);
        const std::vector<float> whole = Multiply(packed.weight(), x);
        for (const int ranks : {2, 4, 8}) {
          const int64_t columns = shape.columns / ranks;
          std::vector<std::vector<float>> parts;
          for (int rank = 0; rank < ranks; ++rank) {
            const Packed shard(weight.Shard(rank, ranks));
            parts.push_back(
                Multiply(shard.weight(), Columns(x, shape.columns, rank * columns, columns)));
          }
          ExpectSameBits(TreeSum(parts), whole, shape.rows,
                         Describe(shape, tokens) + ", ranks " + std::to_string(ranks));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Long segments are cut in two, and their tree continues that of the segments.
TEST(CudaMatmulTest, LongSegmentsKeepTheTreeAtEveryDegreeOfParallelism) {
  const WeightShape shape{DType::kF8E4M3, 18, 2 * 4096, 2};
  const PlainWeight weight = RandomWeight(shape, 21);
  const std::vector<BFloat16> x = RandomActivations(2 * shape.columns, 22);
  const std::vector<float> whole = Multiply(Packed(weight).weight(), x);
  ExpectNearPlainSums(weight, x, whole, Describe(shape, 2));
  std::vector<std::vector<float>> parts;
  for (int rank = 0; rank < 2; ++rank) {
    parts.push_back(Multiply(Packed(weight.Shard(rank, 2)).weight(),
                             Columns(x, shape.columns, rank * 4096, 4096)));
  }
  ExpectSameBits(TreeSum(parts), whole, shape.rows, "ranks 2");
}

TEST(CudaMatmulTest, ScalesEachSegmentBeforeTheTree) {
  // 2^127 + 2^127 overflows unless each is scaled first; 2^-1 · 2^127 twice is 2^127.
  PlainWeight weight({DType::kF8E4M3, 1, 2, 2});
  weight.bytes = {0x38, 0x38};  // 1, 1
  weight.scales = {0.5f};
  const Packed packed(weight);
  const BFloat16 x = ToBFloat16(std::ldexp(1.0f, 127));
  for (const MatmulPlan& plan : AllPlans(weight.shape, 1)) {
    EXPECT_EQ(Multiply(packed.weight(), {x, x}, plan)[0], std::ldexp(1.0f, 127));
  }
}

TEST(CudaMatmulTest, NonFiniteActivationsStayInTheirToken) {
  const WeightShape shape{DType::kF8E4M3, 40, 8 * 22, 8};
  const Packed packed(RandomWeight(shape, 15));
  for (const int64_t tokens : {2, 13, 40}) {
    const std::vector<BFloat16> clean = RandomActivations(tokens * shape.columns, 16);
    const std::vector<float> expected = Multiply(packed.weight(), clean);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, -INFINITY}) {
      const int64_t token = tokens / 2;
      std::vector<BFloat16> x = clean;
      // The last column of a padded segment: what comes behind it is another's.
      x[static_cast<size_t>(token * shape.columns + 21)] = ToBFloat16(bad);
      const std::vector<float> out = Multiply(packed.weight(), x);
      for (size_t i = 0; i < out.size(); ++i) {
        if (static_cast<int64_t>(i) / shape.rows == token) {
          EXPECT_FALSE(std::isfinite(out[i])) << i;
        } else {
          EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected[i])) << i;
        }
      }
    }
  }
}

TEST(CudaMatmulTest, NaNWeightsStayInTheirRow) {
  const WeightShape shape{DType::kF8E4M3, 70, 2 * 22, 2};
  PlainWeight weight = RandomWeight(shape, 17);
  constexpr int64_t kRow = 33;
  for (const int64_t tokens : {1, 9, 40}) {
    const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, 18);
    const std::vector<float> expected = Multiply(Packed(weight).weight(), x);
    PlainWeight broken = weight;
    broken.Code(kRow, 21) = 0xff;
    const std::vector<float> out = Multiply(Packed(broken).weight(), x);
    for (size_t i = 0; i < out.size(); ++i) {
      if (static_cast<int64_t>(i) % shape.rows == kRow) {
        EXPECT_TRUE(std::isnan(out[i])) << i;
      } else {
        EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected[i])) << i;
      }
    }
  }
}

TEST(CudaMatmulTest, PacksTheSameInOneCallOrInMany) {
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    const PlainWeight plain = RandomWeight({dtype, 210, 4 * 7, 4}, 19);
    const std::vector<char> bytes = Packed(plain, 64).Bytes();
    EXPECT_EQ(bytes, Packed(plain, 128).Bytes());
    EXPECT_EQ(bytes, Packed(plain, 256).Bytes());
  }
}

#ifdef MARCORO_SIMT
// The emulator's order of threads is another with every seed.
TEST(CudaMatmulTest, BitsDependOnNoOrderOfThreads) {
  const WeightShape shape{DType::kF8E4M3, 100, 4 * 72, 4};
  const PlainWeight weight = RandomWeight(shape, 23);
  for (const int64_t tokens : {5, 70}) {
    const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, 24);
    const std::vector<float> expected = Multiply(Packed(weight).weight(), x);
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      simt::SetSeed(seed);
      ExpectSameBits(expected, Multiply(Packed(weight).weight(), x), shape.rows,
                     "seed " + std::to_string(seed));
    }
  }
}
#endif

// The weights of a 7B model, on devices with much and with little shared memory.
TEST(MatmulPlanTest, FitsTheDeviceAndItsScratchMemory) {
  constexpr DType kF8 = DType::kF8E4M3;
  for (const WeightShape& shape :
       {WeightShape{kF8, 6144, 4096, 1}, WeightShape{kF8, 4096, 4096, 8},
        WeightShape{kF8, 28672, 4096, 1}, WeightShape{kF8, 4096, 14336, 8},
        WeightShape{DType::kBF16, 32000, 4096, 1}, WeightShape{kF8, 4096, 512, 1},
        WeightShape{kF8, 4096, 14336, 1}}) {
    for (const MatmulLimits& limits :
         {MatmulLimits{132, 232448}, MatmulLimits{132, 232448, /*warpgroups=*/true},
          MatmulLimits{108, 166912}, MatmulLimits{84, 101376}}) {
      for (const int64_t tokens : {1, 8, 9, 16, 32, 33, 64, 65, 256, 2048}) {
        const MatmulPlan plan = PlanMatmul(shape, tokens, limits);
        EXPECT_LE(plan.shared_bytes, limits.shared_bytes) << Describe(shape, tokens);
        EXPECT_GE(plan.parts * plan.block_leaves, 1);
      }
    }
    for (const int64_t most : {1, 40, 300, 2048}) {
      const size_t scratch = MatmulScratchBytes(shape, most);
      for (int64_t tokens = 1; tokens <= most; ++tokens) {
        MatmulLimits limits = DeviceMatmulLimits();
        for (const bool warpgroups : {false, true}) {
          limits.warpgroups = warpgroups;
          const MatmulPlan plan = PlanMatmul(shape, tokens, limits);
          ASSERT_LE(PlanScratchBytes(plan, shape, tokens), scratch) << Describe(shape, tokens);
        }
      }
    }
  }
}

// One token on a GPU of 132 multiprocessors: enough bytes under way everywhere.
TEST(MatmulPlanTest, KeepsMemoryBusyForOneToken) {
  const MatmulLimits h200 = {.multiprocessors = 132, .shared_bytes = 232448};
  for (const WeightShape& shape :
       {WeightShape{DType::kF8E4M3, 6144, 4096, 1}, WeightShape{DType::kF8E4M3, 4096, 4096, 8},
        WeightShape{DType::kF8E4M3, 28672, 4096, 1}, WeightShape{DType::kF8E4M3, 4096, 14336, 8},
        WeightShape{DType::kBF16, 32000, 4096, 1}}) {
    const MatmulPlan plan = PlanMatmul(shape, 1, h200);
    ASSERT_TRUE(plan.few_tokens);
    EXPECT_EQ(plan.parts, 1) << Describe(shape, 1);
    EXPECT_EQ(plan.blocks, 132);
    // Three stages of every warp.
    const int under_way = plan.slots * plan.block_leaves * 3 * plan.stage_steps *
                          static_cast<int>(SizeOf(shape.dtype)) * 512;
    EXPECT_GE(under_way, 48 * 1024) << Describe(shape, 1);
  }
}

}  // namespace
}  // namespace marcoro::cuda
