// RopeAndStoreKv and Attention together: how keys and values lie in a block is the backend's own
// affair.

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/attention_harness.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/compare.h"

namespace marcoro {
namespace {

// Large enough for every normally distributed value in these tests.
constexpr float kLargestValue = 5;

AttentionInput Input(int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t window,
                     std::vector<int32_t> lengths) {
  return AttentionInput({heads, kv_heads, head_dim, window}, std::move(lengths));
}

// Root mean square of the differences.
double RmsError(const Matrix& expected, const Matrix& actual) {
  double sum = 0;
  for (int64_t r = 0; r < expected.rows(); ++r) {
    for (int64_t c = 0; c < expected.columns(); ++c) {
      sum += std::pow(double{actual.At(r, c)} - expected.At(r, c), 2);
    }
  }
  return std::sqrt(sum / static_cast<double>(expected.rows() * expected.columns()));
}

TEST(ReferenceAttentionTest, IsTheFormulaInFloat32) {
  const AttentionInput input = Input(4, 2, 6, 0, {21});
  const AttentionResult bf16 =
      RunAttention(input, {"reference", 1, DType::kBF16, AllAtOnce(input)});
  EXPECT_TRUE(Near(ExactAttention(input), bf16.out, kBf16HalfUlp * 1.01f, 1e-6f));
}

TEST(ReferenceAttentionTest, InFp8IsTheFormulaOverCodesTimesScales) {
  const AttentionInput input = Input(4, 2, 6, 0, {21});
  const AttentionResult result =
      RunAttention(input, {"reference", 1, DType::kBF16, AllAtOnce(input), 1, KvFormat::kFp8});
  EXPECT_TRUE(Near(ExactAttention(input, KvFormat::kFp8), result.out, kBf16HalfUlp * 1.01f, 1e-6f));
}

TEST(ReferenceAttentionTest, EqualKeysGiveTheMeanOfTheValuesInTheWindow) {
  AttentionInput input = Input(1, 1, 2, 3, {5});
  for (int32_t p = 0; p < 5; ++p) {
    const std::vector<float> row = {1, 2, 0, 0, static_cast<float>(p), 10.0f * p};
    for (int64_t c = 0; c < 6; ++c) input.qkv.Set(p, c, row[static_cast<size_t>(c)]);
  }
  const AttentionResult result =
      RunAttention(input, {"reference", 1, DType::kF32, AllAtOnce(input)});
  EXPECT_FLOAT_EQ(result.out.At(0, 0), 0);
  EXPECT_FLOAT_EQ(result.out.At(1, 0), 0.5f);
  EXPECT_FLOAT_EQ(result.out.At(4, 0), 3);  // positions 2, 3, 4
  EXPECT_FLOAT_EQ(result.out.At(4, 1), 30);
}

TEST(ReferenceRopeTest, AQuarterTurnByHand) {
  AttentionInput input = Input(1, 1, 4, 0, {2});
  for (int64_t c = 0; c < 12; ++c) input.qkv.Set(1, c, static_cast<float>(c + 1));
  // Pair (0, 2) by 90 degrees, pair (1, 3) not at all.
  const std::vector<float> table = {0, 1, 1, 0};
  for (int64_t c = 0; c < 4; ++c) input.rope.Set(1, c, table[static_cast<size_t>(c)]);
  const AttentionResult result =
      RunAttention(input, {"reference", 1, DType::kF32, AllAtOnce(input)});
  EXPECT_EQ(result.q.At(1, 0), -3);
  EXPECT_EQ(result.q.At(1, 1), 2);
  EXPECT_EQ(result.q.At(1, 2), 1);
  EXPECT_EQ(result.q.At(1, 3), 4);
}

struct ShapeCase {
  std::string name;
  AttentionShape shape;
};

// Head dimensions with and without a rest, ratios of query to KV heads, windows from a single
// position on.
std::vector<ShapeCase> ShapeCases() {
  return {
      {"Mistral", {4, 1, 128, 0}},         {"Tiny", {4, 2, 16, 0}},
      {"Window", {4, 2, 32, 16}},          {"OneHead", {1, 1, 16, 0}},
      {"TwoToOne", {4, 2, 48, 0}},         {"ThreeToOne", {3, 1, 64, 0}},
      {"EightToOne", {16, 2, 32, 0}},      {"SeventeenToOne", {17, 1, 20, 0}},
      {"SmallestDim", {2, 1, 2, 0}},       {"OddHalf", {2, 2, 6, 0}},
      {"RaggedDim", {2, 1, 34, 0}},        {"LongDim", {2, 1, 320, 0}},
      {"SelfOnly", {2, 1, 16, 1}},         {"WindowOfTwo", {2, 1, 16, 2}},
      {"WindowSeventeen", {4, 1, 64, 17}}, {"WindowOverTiles", {4, 1, 32, 100}},
  };
}

const char* NameOf(KvFormat format) { return format == KvFormat::kFp8 ? "Fp8" : "Bf16"; }

class AttentionTest
    : public ::testing::TestWithParam<std::tuple<std::string, KvFormat, ShapeCase>> {
 protected:
  AttentionRun Run(std::vector<Step> steps, int threads = 1, uint32_t block_seed = 1) const {
    return {std::get<0>(GetParam()), threads,    DType::kBF16,
            std::move(steps),        block_seed, std::get<1>(GetParam())};
  }
  AttentionInput InputOf(std::vector<int32_t> lengths) const {
    return AttentionInput(std::get<2>(GetParam()).shape, std::move(lengths));
  }
};

TEST_P(AttentionTest, AgreesWithTheReference) {
  const AttentionInput input = InputOf({1, 2, 15, 16, 17, 33, 63, 64, 65, 150});
  AttentionRun reference = Run(AllAtOnce(input));
  reference.backend = "reference";
  const AttentionResult expected = RunAttention(input, reference);
  const AttentionResult actual = RunAttention(input, Run(AllAtOnce(input), 2));
  EXPECT_TRUE(BitwiseEqual(expected.q, actual.q));
  // Probabilities are rounded to BF16 before they meet the values.
  EXPECT_TRUE(Near(expected.out, actual.out, kBf16Ulp, kBf16HalfUlp * kLargestValue));
}

TEST_P(AttentionTest, BitsDoNotDependOnChunksCompanyBlocksOrThreads) {
  const AttentionInput input = InputOf({1, 18, 33, 90, 131});
  const AttentionResult expected = RunAttention(input, Run(TokenByToken(input)));
  const AttentionResult at_once = RunAttention(input, Run(AllAtOnce(input), 1, 2));
  EXPECT_TRUE(BitwiseEqual(expected.out, at_once.out)) << "all at once";
  for (uint32_t seed = 1; seed <= 6; ++seed) {
    const int threads = static_cast<int>(seed % 4) + 1;
    const AttentionResult mixed =
        RunAttention(input, Run(RandomChunks(input, seed), threads, 10 + seed));
    EXPECT_TRUE(BitwiseEqual(expected.out, mixed.out))
        << "random chunks " << seed << " on " << threads << " threads";
  }
}

TEST_P(AttentionTest, WhatIsNotVisibleDoesNotMatterNotEvenNan) {
  const AttentionInput clean = InputOf({100});
  const int32_t window = clean.shape.window;
  const AttentionResult expected = RunAttention(clean, Run(AllAtOnce(clean)));
  for (const int32_t bad : {0, 1, 15, 16, 41, 64, 98, 99}) {
    SCOPED_TRACE(bad);
    AttentionInput input = clean;
    input.qkv.FillRow(bad, NAN);
    const AttentionResult result = RunAttention(input, Run(AllAtOnce(input)));
    for (int32_t p = 0; p < 100; ++p) {
      const bool sees = p >= bad && (window == 0 || p - bad < window);
      for (int64_t c = 0; c < result.out.columns(); ++c) {
        ASSERT_EQ(std::isnan(result.out.At(p, c)), sees) << "position " << p << ", column " << c;
        if (sees) continue;
        ASSERT_EQ(result.out.At(p, c), expected.out.At(p, c)) << "position " << p;
      }
    }
  }
}

// Every backend with the shapes that it takes.
std::vector<AttentionTest::ParamType> Cases() {
  std::vector<AttentionTest::ParamType> cases;
  for (const std::string& name : FastBackendNames()) {
    const auto backend = MakeBackend(name);
    for (const ShapeCase& shape : ShapeCases()) {
      const StepLimits limits = {.tokens = 1, .attention = shape.shape, .weights = {}};
      if (!backend->Reserve(limits).ok()) continue;
      cases.emplace_back(name, KvFormat::kActivation, shape);
      cases.emplace_back(name, KvFormat::kFp8, shape);
    }
  }
  return cases;
}

std::string CaseName(const ::testing::TestParamInfo<AttentionTest::ParamType>& info) {
  return std::get<0>(info.param) + "_" + NameOf(std::get<1>(info.param)) + "_" +
         std::get<2>(info.param).name;
}
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest, ::testing::ValuesIn(Cases()), CaseName);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AttentionTest);

class AttentionBackendTest : public ::testing::TestWithParam<std::tuple<std::string, KvFormat>> {
 protected:
  const std::string& backend() const { return std::get<0>(GetParam()); }
  KvFormat format() const { return std::get<1>(GetParam()); }
  AttentionRun Run(std::vector<Step> steps, const std::string& name = "") const {
    return {name.empty() ? backend() : name, 1, DType::kBF16, std::move(steps), 1, format()};
  }
};

TEST_P(AttentionBackendTest, ErrorIsLikeThatOfRoundingTheOutput) {
  // Errors are largest where few keys share the weight: many beginnings, so that none counts much.
  std::vector<int32_t> lengths(16, 60);
  lengths.front() = 300;
  const AttentionInput input = Input(4, 1, 128, 0, lengths);
  const Matrix exact = ExactAttention(input, format());
  Matrix rounded(DType::kBF16, exact.rows(), exact.columns());
  for (int64_t r = 0; r < exact.rows(); ++r) {
    for (int64_t c = 0; c < exact.columns(); ++c) rounded.Set(r, c, exact.At(r, c));
  }
  const AttentionResult result = RunAttention(input, Run(AllAtOnce(input)));
  // Probabilities are rounded too: 1.41 times for two errors of a size.
  EXPECT_LE(RmsError(exact, result.out), 1.5 * RmsError(exact, rounded));
}

TEST_P(AttentionBackendTest, ScoresFarApartDoNotOverflow) {
  AttentionInput input = Input(2, 1, 16, 0, {200});
  for (int64_t r = 0; r < 200; ++r) {
    for (int64_t c = 0; c < 48; ++c) input.qkv.Set(r, c, input.qkv.At(r, c) * 100);
  }
  const AttentionResult expected = RunAttention(input, Run(AllAtOnce(input), "reference"));
  const AttentionResult actual = RunAttention(input, Run(AllAtOnce(input)));
  // A score of thousands is only as good as 2⁻²⁴ of itself.
  EXPECT_TRUE(Near(expected.out, actual.out, kBf16Ulp, 0.02f));
}

TEST_P(AttentionBackendTest, LongSequencesAgreeWithTheReference) {
  const AttentionInput input = Input(4, 2, 32, 0, {1000});
  const std::vector<Step> steps = {{{0, 0, 990}}, {{0, 990, 10}}};
  const AttentionResult expected = RunAttention(input, Run(steps, "reference"));
  const AttentionResult actual = RunAttention(input, Run(steps));
  EXPECT_TRUE(Near(expected.out, actual.out, kBf16Ulp, kBf16HalfUlp * kLargestValue));
}

TEST_P(AttentionBackendTest, ABlockOutsideTheCacheIsABug) {
  const auto ops = MakeBackend(backend());
  const AttentionShape shape = {1, 1, 2, 0};
  std::vector<uint8_t> memory(ops->KvBlockBytes(1, 2, format()), 0);
  const KvCacheLayer cache = {memory.data(), 1, 1, 2, format()};
  const Matrix q = Matrix(DType::kBF16, 1, 2).FillNormal(1);
  const Matrix out(DType::kBF16, 1, 2);
  const int32_t block = 1;
  const std::vector<SequenceSpan> spans = {{0, 1, 0, &block, 1}};
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(ops->Attention(q.view(), shape, spans, cache, out.view()),
               "check failed: block >= 0");
}

TEST_P(AttentionBackendTest, ZeroedBlocksReadAsZeros) {
  const auto ops = MakeBackend(backend());
  const AttentionShape shape = {2, 1, 16, 0};
  auto memory = ops->Allocate(3 * ops->KvBlockBytes(1, 16, format()));
  ASSERT_TRUE(memory.ok());
  std::memset(memory->data(), 0xff, memory->bytes());
  const KvCacheLayer cache = {memory->data(), 3, 1, 16, format()};
  const std::vector<int32_t> blocks = {2, 0};
  ops->ZeroKvBlocks(cache, blocks);
  const Matrix q = Matrix(DType::kBF16, 1, 32).FillNormal(1);
  const Matrix out(DType::kBF16, 1, 32);
  const std::vector<SequenceSpan> spans = {{0, 1, 31, blocks.data(), 2}};
  ops->Attention(q.view(), shape, spans, cache, out.view());
  for (int64_t c = 0; c < 32; ++c) EXPECT_EQ(out.At(0, c), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Backends, AttentionBackendTest,
    ::testing::Combine(::testing::ValuesIn(AllBackendNames()),
                       ::testing::Values(KvFormat::kActivation, KvFormat::kFp8)),
    [](const auto& test) { return std::get<0>(test.param) + NameOf(std::get<1>(test.param)); });

}  // namespace
}  // namespace marcoro
