// Attention over a cache that is given, whoever computed it: which of the kernels takes a query, in
// which company, must not show in its bits.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/step_upload.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/attention_problem.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace marcoro::cuda {
namespace {

// Large enough for every normally distributed value in these tests.
constexpr float kLargestValue = 5;

enum class Blocks { kOneByOne, kAllAtOnce };

// The output of the step's chunks, row by row, then of its padding.
Matrix Attend(const Problem& problem, const Step& step, Blocks blocks = Blocks::kOneByOne) {
  const Cache cache = FillCache(problem, step);
  const StepArrays arrays = Upload(step, cache);
  Matrix q(DType::kBF16, arrays.view.rows, problem.q.columns(), 2);
  int64_t row = 0;
  for (const Chunk& chunk : step.chunks) {
    for (int32_t t = 0; t < chunk.tokens; ++t, ++row) {
      q.CopyRow(row, problem.q, problem.RowOf(chunk.sequence, chunk.begin + t));
    }
  }
  const DeviceMatrix device_q(q);
  const DeviceArray<char> device_cache{absl::MakeConstSpan(cache.blocks)};
  const DeviceMatrix out(Matrix(DType::kBF16, arrays.view.rows, problem.q.columns(), 4));
  const DeviceArray<uint8_t> scratch(
      AttentionScratchBytes(problem.shape, arrays.view.rows, arrays.view.context));
  const auto launch = [&] {
    Attention(TestStream(), device_q.view(), problem.shape, arrays.view,
              {.data = device_cache.data(),
               .blocks = static_cast<int32_t>(cache.table.size()) + 3,
               .kv_heads = problem.shape.kv_heads,
               .head_dim = problem.shape.head_dim,
               .format = problem.format},
              out.view(), scratch.data());
  };
  if (blocks == Blocks::kAllAtOnce) {
    WithAllBlocksAtOnce(launch);
  } else {
    launch();
  }
  Matrix result = out.ToHost();
  EXPECT_TRUE(result.PaddingIsIntact());
  EXPECT_THAT(arrays.arrivals.ToHost(), ::testing::Each(0));
  return result;
}

// Rows of `whole`, the output of everything, that a step computes.
Matrix RowsOf(const Problem& problem, const Matrix& whole, const Step& step) {
  int64_t rows = 0;
  for (const Chunk& chunk : step.chunks) rows += chunk.tokens;
  Matrix result(DType::kBF16, rows, whole.columns());
  int64_t row = 0;
  for (const Chunk& chunk : step.chunks) {
    for (int32_t t = 0; t < chunk.tokens; ++t) {
      result.CopyRow(row++, whole, problem.RowOf(chunk.sequence, chunk.begin + t));
    }
  }
  return result;
}

// softmax(q kᵀ / sqrt(D)) v of one head of one token, in double.
std::vector<double> ExactHead(const Problem& problem, int32_t sequence, int32_t position,
                              int head) {
  const AttentionShape& shape = problem.shape;
  const int64_t query = int64_t{head} * shape.head_dim;
  const int64_t column = int64_t{head / (shape.heads / shape.kv_heads)} * shape.head_dim;
  const int32_t first = shape.window > 0 ? std::max(0, position - shape.window + 1) : 0;
  std::vector<double> scores;
  for (int32_t p = first; p <= position; ++p) {
    double dot = 0;
    for (int i = 0; i < shape.head_dim; ++i) {
      dot += double{problem.q.At(problem.RowOf(sequence, position), query + i)} *
             problem.k.At(problem.RowOf(sequence, p), column + i);
    }
    scores.push_back(dot / std::sqrt(double(shape.head_dim)));
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  std::vector<double> result(shape.head_dim, 0.0);
  for (int32_t p = first; p <= position; ++p) {
    const double weight = std::exp(scores[p - first] - max);
    total += weight;
    for (int i = 0; i < shape.head_dim; ++i) {
      result[i] += weight * problem.v.At(problem.RowOf(sequence, p), column + i);
    }
  }
  for (double& element : result) element /= total;
  return result;
}

Matrix Exact(const Problem& problem) {
  Matrix result(DType::kF32, problem.q.rows(), problem.q.columns());
  for (int32_t s = 0; s < static_cast<int32_t>(problem.lengths.size()); ++s) {
    for (int32_t p = 0; p < problem.lengths[s]; ++p) {
      for (int h = 0; h < problem.shape.heads; ++h) {
        const std::vector<double> head = ExactHead(problem, s, p, h);
        for (int i = 0; i < problem.shape.head_dim; ++i) {
          result.Set(problem.RowOf(s, p), int64_t{h} * problem.shape.head_dim + i,
                     static_cast<float>(head[i]));
        }
      }
    }
  }
  return result;
}

double RmsError(const Matrix& expected, const Matrix& actual) {
  double sum = 0;
  for (int64_t r = 0; r < expected.rows(); ++r) {
    for (int64_t c = 0; c < expected.columns(); ++c) {
      sum += std::pow(double{actual.At(r, c)} - expected.At(r, c), 2);
    }
  }
  return std::sqrt(sum / static_cast<double>(expected.rows() * expected.columns()));
}

struct ShapeCase {
  std::string name;
  AttentionShape shape;
  KvFormat format = KvFormat::kActivation;
};

class CudaAttentionTest : public ::testing::TestWithParam<ShapeCase> {
 protected:
  const AttentionShape& shape() const { return GetParam().shape; }
  Problem ProblemOf(std::vector<int32_t> lengths) const {
    return Problem(shape(), std::move(lengths), 1, GetParam().format);
  }
};

TEST_P(CudaAttentionTest, AgreesWithTheFormula) {
  const Problem problem = ProblemOf({1, 16, 17, 65, 150});
  EXPECT_TRUE(Near(Exact(problem), Attend(problem, Whole(problem)), kBf16Ulp,
                   kBf16HalfUlp * kLargestValue));
}

// Chunks of every length begin and end beside the edges of 16s, of tiles and of splits.
TEST_P(CudaAttentionTest, BitsDoNotDependOnChunksOrCompany) {
  const Problem problem = ProblemOf({290, 30, 262});
  const Matrix whole = Attend(problem, Whole(problem));
  const std::vector<Step> steps = {
      {{{0, 0, 1}, {1, 29, 1}, {2, 261, 1}}},
      {{{0, 255, 1}}},
      {{{0, 256, 1}}},
      {{{2, 257, 1}, {0, 63, 1}, {1, 15, 1}, {0, 64, 1}}},
      {{{0, 253, 5}, {1, 0, 30}}},
      {{{0, 16, 47}, {2, 200, 62}, {0, 289, 1}}, 3},
      {{{2, 100, 130}, {0, 0, 120}}, 0, 2, 1000, 300, 7},
  };
  for (size_t i = 0; i < steps.size(); ++i) {
    const Matrix out = Attend(problem, steps[i]);
    Matrix rows(DType::kBF16, out.rows() - steps[i].padding_rows, out.columns());
    for (int64_t r = 0; r < rows.rows(); ++r) rows.CopyRow(r, out, r);
    EXPECT_TRUE(BitwiseEqual(RowsOf(problem, whole, steps[i]), rows)) << "step " << i;
  }
}

TEST_P(CudaAttentionTest, WhatIsNotVisibleDoesNotMatterNotEvenNan) {
  // Long enough for a window of 100 to begin in another tile than it ends.
  const int32_t length = shape().window == 100 ? 150 : 90;
  const Problem clean = ProblemOf({length});
  const Matrix expected = Attend(clean, Whole(clean));
  for (const int32_t bad : {0, 64, 88}) {
    SCOPED_TRACE(bad);
    for (const bool in_values : {false, true}) {
      Problem problem = clean;
      (in_values ? problem.v : problem.k).FillRow(bad, in_values ? INFINITY : NAN);
      const Matrix out = Attend(problem, Whole(problem));
      for (int32_t p = 0; p < length; ++p) {
        const bool sees = p >= bad && (shape().window == 0 || p - bad < shape().window);
        for (int64_t c = 0; c < out.columns(); ++c) {
          ASSERT_EQ(std::isfinite(out.At(p, c)), !sees) << "position " << p << ", column " << c;
          if (sees) continue;
          ASSERT_EQ(out.At(p, c), expected.At(p, c)) << "position " << p << ", column " << c;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaAttentionTest,
    ::testing::Values(ShapeCase{"OneToOne", {2, 2, 32, 0}}, ShapeCase{"TwoToOne", {2, 1, 24, 0}},
                      ShapeCase{"ThreeToOne", {3, 1, 64, 0}}, ShapeCase{"FourToOne", {4, 1, 16, 0}},
                      ShapeCase{"EightToOne", {8, 1, 32, 0}},
                      ShapeCase{"SeventeenToOne", {17, 1, 8, 0}}, ShapeCase{"Dim80", {2, 1, 80, 0}},
                      ShapeCase{"Dim128", {2, 1, 128, 0}}, ShapeCase{"Dim200", {1, 1, 200, 0}},
                      ShapeCase{"Dim2", {2, 1, 2, 0}}, ShapeCase{"Dim34", {2, 1, 34, 0}},
                      ShapeCase{"SelfOnly", {2, 1, 16, 1}},
                      ShapeCase{"WindowSeventeen", {4, 2, 16, 17}},
                      ShapeCase{"WindowOverTiles", {4, 1, 32, 100}},
                      ShapeCase{"WindowOverSplits", {2, 1, 32, 260}},
                      ShapeCase{"Fp8FourToOne", {4, 1, 16, 0}, KvFormat::kFp8},
                      ShapeCase{"Fp8Dim24", {2, 1, 24, 0}, KvFormat::kFp8},
                      ShapeCase{"Fp8Dim34", {2, 1, 34, 0}, KvFormat::kFp8},
                      ShapeCase{"Fp8Dim96", {3, 1, 96, 0}, KvFormat::kFp8},
                      ShapeCase{"Fp8Dim128", {2, 1, 128, 0}, KvFormat::kFp8},
                      ShapeCase{"Fp8Dim200", {1, 1, 200, 0}, KvFormat::kFp8},
                      ShapeCase{"Fp8SeventeenToOne", {17, 1, 8, 0}, KvFormat::kFp8},
                      ShapeCase{"Fp8WindowOverTiles", {4, 1, 32, 100}, KvFormat::kFp8},
                      ShapeCase{"Fp8WindowOverSplits", {2, 1, 32, 260}, KvFormat::kFp8}),
    [](const auto& test) { return test.param.name; });

// Tokens of one matrix product of which only the first few still see an infinite value, in a tile
// that holds nothing else that any of them does not see.
TEST(CudaAttentionWindowTest, AValueThatLeavesTheWindowLeavesTheResult) {
  const Problem clean({2, 1, 16, 100}, {150});
  Problem problem = clean;
  problem.v.FillRow(15, INFINITY);
  for (const Step& step : {Step{{{0, 108, 12}}}, Whole(clean)}) {
    const Matrix expected = Attend(clean, step);
    const Matrix out = Attend(problem, step);
    for (int64_t r = 0; r < out.rows(); ++r) {
      const int64_t position = step.chunks[0].begin + r;
      for (int64_t c = 0; c < out.columns(); ++c) {
        if (position >= 15 && position < 115) {
          ASSERT_FALSE(std::isfinite(out.At(r, c))) << "position " << position;
        } else {
          ASSERT_EQ(out.At(r, c), expected.At(r, c)) << "position " << position;
        }
      }
    }
  }
}

TEST(CudaAttentionErrorTest, IsLikeThatOfRoundingTheOutput) {
  const Problem problem({4, 1, 128, 0}, {300});
  const Matrix exact = Exact(problem);
  Matrix rounded(DType::kBF16, exact.rows(), exact.columns());
  for (int64_t r = 0; r < exact.rows(); ++r) {
    for (int64_t c = 0; c < exact.columns(); ++c) rounded.Set(r, c, exact.At(r, c));
  }
  EXPECT_LE(RmsError(exact, Attend(problem, Whole(problem))), 1.5 * RmsError(exact, rounded));
}

TEST(CudaAttentionErrorTest, ScoresFarApartDoNotOverflow) {
  Problem problem({2, 1, 16, 0}, {200});
  for (int64_t r = 0; r < 200; ++r) {
    for (int64_t c = 0; c < problem.q.columns(); ++c) problem.q.Set(r, c, problem.q.At(r, c) * 100);
    for (int64_t c = 0; c < problem.k.columns(); ++c) problem.k.Set(r, c, problem.k.At(r, c) * 100);
  }
  // A score of thousands is only as good as 2⁻²⁴ of itself.
  EXPECT_TRUE(Near(Exact(problem), Attend(problem, Whole(problem)), kBf16Ulp, 0.02f));
}

// More splits than are merged at a time; the blocks that share them begin inside sequences.
TEST(CudaAttentionSplitsTest, LongAndShortSequencesShareAStep) {
  const Problem problem({2, 1, 16, 0}, {6000, 5, 700, 256, 257, 1});
  Step step = {{{0, 5999, 1}, {1, 4, 1}, {2, 699, 1}, {3, 255, 1}, {4, 256, 1}, {5, 0, 1}}};
  step.context = 8192;
  const Matrix together = Attend(problem, step);
  for (size_t i = 0; i < step.chunks.size(); ++i) {
    const Chunk& chunk = step.chunks[i];
    Matrix row(DType::kBF16, 1, together.columns());
    row.CopyRow(0, together, static_cast<int64_t>(i));
    EXPECT_TRUE(BitwiseEqual(Attend(problem, {{chunk}}), row)) << "sequence " << i;
    for (int h = 0; h < 2; ++h) {
      const std::vector<double> exact = ExactHead(problem, chunk.sequence, chunk.begin, h);
      for (int c = 0; c < 16; ++c) {
        EXPECT_NEAR(row.At(0, h * 16 + c), exact[c], kBf16Ulp * kLargestValue);
      }
    }
  }
}

// Which block is the last to leave its part of a sequence, and merges all of them, is chance. Runs
// of splits here begin and end inside blocks, or have several blocks between.
TEST(CudaAttentionSplitsTest, BitsDoNotDependOnWhichBlockMerges) {
  for (const KvFormat format : {KvFormat::kActivation, KvFormat::kFp8}) {
    const Problem problem({4, 2, 16, 0}, {2600, 700, 600, 3}, 1, format);
    const Step step = {{{0, 2599, 1}, {1, 698, 2}, {2, 599, 1}, {3, 2, 1}}, 1, 1, 4096};
    const Matrix expected = Attend(problem, step);
    InSeveralThreadOrders([&] {
      EXPECT_TRUE(BitwiseEqual(expected, Attend(problem, step)));
      EXPECT_TRUE(BitwiseEqual(expected, Attend(problem, step, Blocks::kAllAtOnce)));
    });
  }
}

TEST(CudaAttentionSplitsTest, NothingIsCountedYetWhenAStepBegins) {
  const int32_t id = 0;
  const int32_t block = 0;
  const SequenceSpan sequence = {.tokens = 1, .blocks = &block, .block_count = 1};
  const StepInput input = {.ids = {&id, 1}, .sequences = {&sequence, 1}, .logit_rows = {}};
  std::vector<uint32_t> arrivals(static_cast<size_t>(ArrivalCounters()));
  const size_t bytes = arrivals.size() * sizeof(uint32_t);
  StepUpload upload;
  for (int step = 0; step < 2; ++step) {
    CheckDevice(upload.Begin(TestStream(), input));
    CopyToHost(TestStream(), arrivals.data(), upload.step().arrivals, bytes);
    CheckDevice(Synchronize(TestStream()));
    EXPECT_THAT(arrivals, ::testing::Each(0));
    Fill(TestStream(), upload.step().arrivals, 1, bytes);  // as a kernel that failed might leave it
  }
}

TEST(CudaAttentionSplitsTest, ManySequencesFindTheirPieces) {
  const Problem problem({2, 2, 8, 0}, std::vector<int32_t>(70, 20));
  const Matrix whole = Attend(problem, Whole(problem));
  Step step;
  for (int32_t s = 0; s < 70; ++s) {
    if (s % 7 != 3) step.chunks.push_back({s, 19 - s % 5, 1 + s % 3 % (1 + s % 5)});
  }
  EXPECT_TRUE(BitwiseEqual(RowsOf(problem, whole, step), Attend(problem, step)));
}

TEST(CudaAttentionPaddingTest, RowsOfNoSequenceBecomeZero) {
  for (const int32_t head_dim : {16, 34}) {
    const Problem problem({2, 1, head_dim, 0}, {20});
    const Matrix out = Attend(problem, {{{0, 18, 2}}, 5, 3});
    for (int64_t r = 2; r < 7; ++r) {
      for (int64_t c = 0; c < out.columns(); ++c) EXPECT_EQ(out.At(r, c), 0) << "row " << r;
    }
  }
}

TEST(CudaAttentionOrderTest, BitsDoNotDependOnTheOrderOfThreads) {
  const Problem problem({4, 1, 64, 0}, {280, 270});
  const Step few = {{{0, 260, 20}, {1, 269, 1}}};
  const Matrix whole = Attend(problem, Whole(problem));
  const Matrix expected = RowsOf(problem, whole, few);
  InSeveralThreadOrders([&] {
    EXPECT_TRUE(BitwiseEqual(expected, Attend(problem, few)));
    EXPECT_TRUE(BitwiseEqual(whole, Attend(problem, Whole(problem))));
  });
}

}  // namespace
}  // namespace marcoro::cuda
