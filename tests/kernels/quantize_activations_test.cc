// Activations in E4M3: how they are made, and their products with E4M3 weights, over all backends.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/reference/element.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_backends.h"
#include "tests/kernels/matrix.h"
#include "tests/kernels/random_seed.h"

namespace marcoro {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Quantized rows with room between them that has to stay as it is.
struct Quantized {
  Quantized(int64_t tokens, int64_t columns, int64_t segments, int64_t gap = 0)
      : codes(static_cast<size_t>(tokens * (columns + gap)), 0xee),
        scales(static_cast<size_t>(tokens * segments), -1.0f),
        view{.codes = Tensor(codes.data(), DType::kF8E4M3, tokens, columns),
             .scales = Tensor(scales.data(), DType::kF32, tokens, segments)} {
    view.codes.stride += gap;
  }
  Quantized(const Quantized&) = delete;
  Quantized& operator=(const Quantized&) = delete;

  uint8_t Code(int64_t token, int64_t column) const {
    return view.codes.Row<const uint8_t>(token)[column];
  }
  float Scale(int64_t token, int64_t segment) const {
    return view.scales.Row<const float>(token)[segment];
  }

  std::vector<uint8_t> codes;
  std::vector<float> scales;
  QuantizedActivations view;
};

Matrix Row(const std::vector<float>& values) {
  Matrix x(DType::kBF16, 1, static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) x.Set(0, static_cast<int64_t>(i), values[i]);
  return x;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) {
           return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
         });
}

class QuantizeActivationsTest : public ::testing::TestWithParam<std::string> {
 protected:
  const std::unique_ptr<Backend> backend_ = MakeBackend(GetParam(), 2, DType::kF8E4M3);
};

TEST_P(QuantizeActivationsTest, ABackendSaysWhatItsProductsTake) {
  EXPECT_TRUE(backend_->quantizes_activations());
  EXPECT_EQ(backend_->activation_dtype(), DType::kBF16);
  EXPECT_FALSE(MakeBackend(GetParam())->quantizes_activations());
}

// With 448 in the row the scale is 1. Codes by hand: sign, 4 bits of exponent (bias 7), 3 of
// mantissa.
TEST_P(QuantizeActivationsTest, CodesAreTheNearestAndOfTwoTheEvenOne) {
  const std::vector<std::pair<float, uint8_t>> kCases = {
      {448.0f, 0x7e},         {-448.0f, 0xfe}, {0.0f, 0x00},
      {-0.0f, 0x80},          {1.0f, 0x38},    {1.0625f, 0x38},  // between 1 and 1.125: to even
      {1.1875f, 0x3a},                                           // between 1.125 and 1.25: to even
      {1.9375f, 0x40},         // between 1.875 and 2: carries into the exponent
      {0.015625f, 0x08},       // 2^-6, the least normal number
      {0.001953125f, 0x01},    // 2^-9, the least
      {0.0009765625f, 0x00},   // half of it: to even
      {0.0029296875f, 0x02},   // 1.5 of it: to even
      {-0.0146484375f, 0x88},  // 7.5 of it: to the least normal number
      {1e-30f, 0x00},
  };
  std::vector<float> values;
  for (const auto& [value, code] : kCases) values.push_back(value);
  const Matrix x = Row(values);
  const Quantized out(1, x.columns(), 1);
  backend_->QuantizeActivations(x.view(), out.view);
  EXPECT_EQ(out.Scale(0, 0), 1.0f);
  for (size_t i = 0; i < kCases.size(); ++i) {
    EXPECT_EQ(out.Code(0, static_cast<int64_t>(i)), kCases[i].second) << kCases[i].first;
  }
}

TEST_P(QuantizeActivationsTest, EverySegmentHasItsOwnScale) {
  const Matrix x = Row({7, -14, 0, 0, 1e-3f, -448e30f, kNan, 1, -INFINITY, 2});
  const Quantized out(1, 10, 5);
  backend_->QuantizeActivations(x.view(), out.view);
  EXPECT_EQ(out.Scale(0, 0), 14.0f / 448.0f);
  EXPECT_EQ(out.Code(0, 0), 0x76);  // 224
  EXPECT_EQ(out.Code(0, 1), 0xfe);  // -448
  EXPECT_EQ(out.Scale(0, 1), 1.0f) << "zeros";
  EXPECT_EQ(out.Code(0, 2), 0);
  EXPECT_EQ(out.Scale(0, 2), -x.At(0, 5) / 448.0f);
  EXPECT_EQ(out.Code(0, 4), 0);
  for (const int64_t bad : {3, 4}) {
    EXPECT_TRUE(std::isnan(out.Scale(0, bad)));
    EXPECT_EQ(out.Code(0, 2 * bad), 0);
    EXPECT_EQ(out.Code(0, 2 * bad + 1), 0);
  }
}

// Every BF16 number with every neighbour that decides its scale: the bits of all backends are those
// of the reference, which rounds in another way.
TEST_P(QuantizeActivationsTest, AllBackendsGiveTheSameBits) {
  constexpr int64_t kTokens = 128;
  constexpr int64_t kColumns = 520;
  const auto reference = MakeBackend("reference", 1, DType::kF8E4M3);
  for (const int64_t gap : {0, 3}) {
    Matrix x(DType::kBF16, kTokens, kColumns, gap);
    std::mt19937 random(1);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t c = 0; c < kColumns; ++c) {
        auto& value = x.view().Row<BFloat16>(t)[c];
        value.bits = static_cast<uint16_t>(t * 512 + c);  // each of them once, and more
        if (c >= 512) value.bits = static_cast<uint16_t>(random());
      }
    }
    for (const int64_t segments : {1, 8, 40}) {
      const Quantized expected(kTokens, kColumns, segments, gap);
      const Quantized out(kTokens, kColumns, segments, gap);
      reference->QuantizeActivations(x.view(), expected.view);
      backend_->QuantizeActivations(x.view(), out.view);
      EXPECT_EQ(out.codes, expected.codes) << segments << " segments";
      EXPECT_TRUE(SameBits(out.scales, expected.scales)) << segments << " segments";
    }
  }
}

// Rows that stay in registers, whole or ragged, and those that do not; in one segment and in more;
// of zeros, and with an infinity.
TEST_P(QuantizeActivationsTest, TheNormThatQuantizesGivesTheBitsOfBothOps) {
  for (const int64_t columns : {8, 63, 4096, 4101, 8192, 9000}) {
    for (const int64_t segments : {1, 3}) {
      if (columns % segments != 0) continue;
      SCOPED_TRACE(columns);
      Matrix residual = Matrix(DType::kF32, 4, columns, 1).FillNormal(1);
      const Matrix delta = Matrix(DType::kF32, 4, columns, 2).FillNormal(2);
      for (int64_t i = 0; i < columns; ++i) residual.Set(2, i, -delta.At(2, i));
      residual.Set(3, columns / 2, INFINITY);
      Matrix same = residual;
      const Matrix norm = Matrix(DType::kF32, 1, columns).FillNormal(7);
      const auto* weight = norm.view().Row<float>(0);
      const Matrix expected(DType::kBF16, 4, columns, 4);
      const Matrix out(DType::kBF16, 4, columns, 4);
      const Quantized codes(4, columns, segments, 3);
      const Quantized fused(4, columns, segments, 3);
      backend_->AddRmsNorm(residual.view(), delta.view(), weight, 1e-5f, expected.view());
      backend_->QuantizeActivations(expected.view(), codes.view);
      backend_->AddRmsNormAndQuantize(same.view(), delta.view(), weight, 1e-5f, out.view(),
                                      fused.view);
      EXPECT_TRUE(BitwiseEqual(residual, same));
      EXPECT_TRUE(BitwiseEqual(expected, out));
      EXPECT_EQ(codes.codes, fused.codes);
      EXPECT_TRUE(SameBits(codes.scales, fused.scales));
    }
  }
}

TEST_P(QuantizeActivationsTest, ARowDependsOnItselfAlone) {
  const Matrix all = Matrix(DType::kBF16, 33, 72).FillNormal(2);
  const Quantized expected(33, 72, 4);
  backend_->QuantizeActivations(all.view(), expected.view);
  for (const int64_t row : {0, 7, 32}) {
    const Quantized out(1, 72, 4);
    backend_->QuantizeActivations(all.view().Rows(row, 1), out.view);
    EXPECT_TRUE(std::equal(out.codes.begin(), out.codes.end(), expected.codes.begin() + row * 72));
    EXPECT_TRUE(
        std::equal(out.scales.begin(), out.scales.end(), expected.scales.begin() + row * 4));
  }
}

// A weight of random codes, packed by the backend.
class Weight {
 public:
  Weight(Backend& backend, const WeightShape& shape, const std::vector<uint8_t>& codes,
         const std::vector<float>& scales)
      : codes_(codes), scales_(scales), data_(backend.WeightBytes(shape), 0xff) {
    weight_ = {shape, Aligned(), scales_.data()};
    for (int64_t row = 0; row < shape.rows; row += 64) {
      backend.PackWeight(weight_, row, std::min<int64_t>(64, shape.rows - row),
                         codes_.data() + row * shape.columns);
    }
  }
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  const PackedWeight& packed() const { return weight_; }
  const std::vector<float>& scales() const { return scales_; }
  uint8_t Code(int64_t row, int64_t column) const {
    return codes_[static_cast<size_t>(row * weight_.shape.columns + column)];
  }

 private:
  void* Aligned() {
    data_.resize(data_.size() + 64, 0xff);
    void* memory = data_.data();
    size_t space = data_.size();
    return std::align(64, data_.size() - 64, memory, space);
  }

  std::vector<uint8_t> codes_;
  std::vector<float> scales_;
  std::vector<uint8_t> data_;
  PackedWeight weight_;
};

std::vector<uint8_t> RandomCodes(int64_t count, uint32_t seed) {
  std::mt19937 random(RandomSeed(seed));
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  for (uint8_t& code : codes) {
    do code = static_cast<uint8_t>(random());
    while ((code & 0x7f) == 0x7f);
  }
  return codes;
}

std::vector<float> RandomScales(int64_t count, uint32_t seed) {
  std::mt19937 random(RandomSeed(seed));
  std::normal_distribution<float> normal;
  std::vector<float> scales(static_cast<size_t>(count));
  for (float& scale : scales) scale = std::exp(normal(random));
  return scales;
}

std::vector<float> Multiply(Backend& backend, const QuantizedActivations& x, const Weight& weight) {
  const int64_t rows = weight.packed().shape.rows;
  Matrix out(DType::kF32, x.codes.rows, rows, 3);
  backend.MultiplyQuantized(x, weight.packed(), out.view());
  EXPECT_TRUE(out.PaddingIsIntact());
  std::vector<float> result;
  for (int64_t t = 0; t < out.rows(); ++t) {
    for (int64_t n = 0; n < rows; ++n) result.push_back(out.At(t, n));
  }
  return result;
}

class QuantizedMatmulTest : public QuantizeActivationsTest {};

TEST_P(QuantizedMatmulTest, MatchesSumsInDouble) {
  const bool on_gpu = GetParam() == "cuda" && !DeviceIsEmulated();
  uint32_t seed = 1;
  for (const int64_t rows : {1, 31, 70}) {
    for (const int64_t segment_columns : {3, 64, 150}) {
      for (const int segments : {1, 2, 8}) {
        for (const int64_t tokens : {1, 7, 40}) {
          const WeightShape shape{DType::kF8E4M3, rows, segment_columns * segments, segments};
          const Weight weight(*backend_, shape, RandomCodes(rows * shape.columns, seed),
                              RandomScales(rows, seed + 1));
          const Matrix x = Matrix(DType::kBF16, tokens, shape.columns).FillNormal(seed + 2);
          seed += 3;
          const Quantized quantized(tokens, shape.columns, segments, /*gap=*/5);
          backend_->QuantizeActivations(x.view(), quantized.view);
          const std::vector<float> out = Multiply(*backend_, quantized.view, weight);
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t n = 0; n < rows; ++n) {
              double sum = 0;
              double magnitude = 0;
              for (int64_t k = 0; k < shape.columns; ++k) {
                const double product = double{reference::E4M3ToFloat(quantized.Code(t, k))} *
                                       reference::E4M3ToFloat(weight.Code(n, k)) *
                                       quantized.Scale(t, k / segment_columns) *
                                       weight.scales()[static_cast<size_t>(n)];
                sum += product;
                magnitude += std::fabs(product);
              }
              // Of a float sum of as many terms. Tensor cores keep some 13 bits of each product,
              // below the largest of 32.
              const double bound = magnitude * 1.2e-7 * static_cast<double>(shape.columns + 4) +
                                   (on_gpu ? magnitude * 0x1p-10 : 0);
              ASSERT_NEAR(out[static_cast<size_t>(t * rows + n)], sum, bound)
                  << tokens << " x " << shape.columns << " x " << rows << " in " << segments
                  << " segments: token " << t << ", row " << n;
            }
          }
        }
      }
    }
  }
}

TEST_P(QuantizedMatmulTest, ATokensBitsDependOnNoOtherToken) {
  constexpr int64_t kTokens = 70;
  const WeightShape shape{DType::kF8E4M3, 50, 4 * 136, 4};
  const Weight weight(*backend_, shape, RandomCodes(shape.rows * shape.columns, 3),
                      RandomScales(shape.rows, 4));
  const Matrix x = Matrix(DType::kBF16, kTokens, shape.columns).FillNormal(5);
  const Quantized quantized(kTokens, shape.columns, 4);
  backend_->QuantizeActivations(x.view(), quantized.view);
  const std::vector<float> all = Multiply(*backend_, quantized.view, weight);
  for (const int64_t tokens : {1, 5, 12, 33}) {
    const int64_t first = kTokens - tokens;
    const std::vector<float> some = Multiply(*backend_,
                                             {.codes = quantized.view.codes.Rows(first, tokens),
                                              .scales = quantized.view.scales.Rows(first, tokens)},
                                             weight);
    EXPECT_TRUE(SameBits(some, {all.begin() + first * shape.rows, all.end()})) << tokens;
  }
}

// Every rank quantizes and multiplies what it holds; nobody knows of the others' inputs.
TEST_P(QuantizedMatmulTest, RanksGiveTheBitsOfOne) {
  const WeightShape shape{DType::kF8E4M3, 20, 8 * 40, 8};
  const std::vector<uint8_t> codes = RandomCodes(shape.rows * shape.columns, 6);
  const std::vector<float> scales = RandomScales(shape.rows, 7);
  for (const int64_t tokens : {1, 3, 40}) {
    const Matrix x = Matrix(DType::kBF16, tokens, shape.columns).FillNormal(8);
    const Quantized quantized(tokens, shape.columns, 8);
    backend_->QuantizeActivations(x.view(), quantized.view);
    const std::vector<float> whole =
        Multiply(*backend_, quantized.view, Weight(*backend_, shape, codes, scales));
    for (const int ranks : {2, 4, 8}) {
      const WeightShape part{DType::kF8E4M3, shape.rows, shape.columns / ranks, 8 / ranks};
      std::vector<std::vector<float>> sums;
      for (int rank = 0; rank < ranks; ++rank) {
        std::vector<uint8_t> part_codes;
        for (int64_t n = 0; n < shape.rows; ++n) {
          const auto begin = codes.begin() + n * shape.columns + rank * part.columns;
          part_codes.insert(part_codes.end(), begin, begin + part.columns);
        }
        Tensor columns = x.view();
        columns.data = columns.Row<BFloat16>(0) + rank * part.columns;
        columns.columns = part.columns;
        const Quantized mine(tokens, part.columns, part.segments);
        backend_->QuantizeActivations(columns, mine.view);
        sums.push_back(Multiply(*backend_, mine.view, Weight(*backend_, part, part_codes, scales)));
      }
      for (; sums.size() > 1; sums.resize(sums.size() / 2)) {
        for (size_t i = 0; 2 * i < sums.size(); ++i) {
          for (size_t e = 0; e < whole.size(); ++e) {
            const float left = sums[2 * i][e];
            sums[i].resize(whole.size());
            sums[i][e] = left + sums[2 * i + 1][e];
          }
        }
      }
      EXPECT_TRUE(SameBits(sums[0], whole)) << tokens << " tokens, " << ranks << " ranks";
    }
  }
}

TEST_P(QuantizedMatmulTest, NonFiniteInputsStayInTheirToken) {
  const WeightShape shape{DType::kF8E4M3, 40, 8 * 22, 8};
  const Weight weight(*backend_, shape, RandomCodes(shape.rows * shape.columns, 9),
                      RandomScales(shape.rows, 10));
  for (const int64_t tokens : {1, 13, 40}) {
    Matrix x = Matrix(DType::kBF16, tokens, shape.columns).FillNormal(11);
    const Quantized clean(tokens, shape.columns, 8);
    backend_->QuantizeActivations(x.view(), clean.view);
    const std::vector<float> expected = Multiply(*backend_, clean.view, weight);
    for (const float bad : {kNan, INFINITY, -INFINITY}) {
      x.Set(tokens / 2, 25, bad);
      const Quantized quantized(tokens, shape.columns, 8);
      backend_->QuantizeActivations(x.view(), quantized.view);
      const std::vector<float> out = Multiply(*backend_, quantized.view, weight);
      for (size_t i = 0; i < out.size(); ++i) {
        if (static_cast<int64_t>(i) / shape.rows == tokens / 2) {
          EXPECT_TRUE(std::isnan(out[i])) << i;
        } else {
          EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected[i])) << i;
        }
      }
    }
  }
}

TEST_P(QuantizedMatmulTest, NanWeightsStayInTheirRow) {
  const WeightShape shape{DType::kF8E4M3, 3, 40, 1};
  std::vector<uint8_t> codes = RandomCodes(3 * 40, 12);
  codes[40 + 39] = 0xff;
  const Weight weight(*backend_, shape, codes, {1, 1, 1});
  const Matrix x = Matrix(DType::kBF16, 2, 40).FillNormal(13);
  const Quantized quantized(2, 40, 1);
  backend_->QuantizeActivations(x.view(), quantized.view);
  const std::vector<float> out = Multiply(*backend_, quantized.view, weight);
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i % 3 == 1) << i;
}

INSTANTIATE_TEST_SUITE_P(Backends, QuantizeActivationsTest, ::testing::ValuesIn(AllBackendNames()),
                         BackendTestName);
INSTANTIATE_TEST_SUITE_P(Backends, QuantizedMatmulTest, ::testing::ValuesIn(AllBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace marcoro
