#include "worker/weights/merge/merge_kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "tests/worker/weights/merge/merge_testing.h"

namespace marcoro {
namespace {

using testing::RandomNumbers;

// Not a multiple of any vector's length.
constexpr int64_t kCount = 1013;

class Variant : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    kernels_ = FindMergeKernels(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this processor does not run " << GetParam();
  }

  const MergeKernels* kernels_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(Kernels, Variant, ::testing::Values("portable", "avx2", "avx512"),
                         [](const auto& variant) { return std::string(variant.param); });

// Numbers of every magnitude, halves between two numbers of a type and their neighbours among them.
std::vector<float> Numbers() {
  std::vector<float> numbers;
  for (int exponent = -40; exponent < 40; ++exponent) {
    for (const double mantissa :
         {1.0, 1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-11, 1 + 3 * 0x1p-11, 1 + 0x1p-11 + 0x1p-23,
          1 + 0x1p-11 - 0x1p-23, 1.7, 2 - 0x1p-8, 2 - 0x1p-12, 2 - 0x1p-23}) {
      numbers.push_back(static_cast<float>(std::ldexp(mantissa, exponent)));
      numbers.push_back(-numbers.back());
    }
  }
  numbers.insert(numbers.end(), {0.0f, -0.0f, 65504.0f, 65519.996f, 65520.0f, 3e38f});
  return numbers;
}

TEST_P(Variant, RoundsAsTheFormatsDefine) {
  for (const auto& [dtype, name] : {std::pair(DType::kBF16, "BF16"), {DType::kF16, "F16"}}) {
    std::vector<float> rounded = Numbers();
    const std::vector<float> expected = testing::Store(name, {}, rounded).Floats();
    kernels_->rounded(dtype).round(rounded.data(), static_cast<int64_t>(rounded.size()));
    for (size_t i = 0; i < rounded.size(); ++i) {
      EXPECT_EQ(std::bit_cast<uint32_t>(rounded[i]), std::bit_cast<uint32_t>(expected[i]))
          << name << " of " << Numbers()[i];
    }
  }
  std::vector<float> same = Numbers();
  kernels_->f32.round(same.data(), static_cast<int64_t>(same.size()));
  EXPECT_EQ(same, Numbers());
}

TEST_P(Variant, SumsProductsInDouble) {
  const std::vector<float> x = RandomNumbers(kCount, 1);
  const std::vector<float> y = RandomNumbers(kCount, 2);
  long double expected[3] = {1, 2, 3};
  for (size_t i = 0; i < x.size(); ++i) {
    expected[0] += static_cast<long double>(x[i]) * x[i];
    expected[1] += static_cast<long double>(y[i]) * y[i];
    expected[2] += static_cast<long double>(x[i]) * y[i];
  }
  double sums[3] = {1, 2, 3};
  kernels_->products(x.data(), y.data(), kCount, sums);
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(sums[i], static_cast<double>(expected[i]), 1e-11);
}

TEST_P(Variant, SumsOfLargeNumbersDoNotOverflow) {
  const std::vector<float> x(kCount, 3e38f);
  double sums[3] = {};
  kernels_->products(x.data(), x.data(), kCount, sums);
  EXPECT_NEAR(sums[2] / (9e76 * kCount), 1, 1e-6);
  EXPECT_NEAR(kernels_->magnitudes(x.data(), kCount) / (3e38 * kCount), 1, 1e-6);
}

TEST_P(Variant, SumsMagnitudes) {
  const std::vector<float> x = RandomNumbers(kCount, 3);
  long double expected = 0;
  for (const float number : x) expected += std::fabs(number);
  EXPECT_NEAR(kernels_->magnitudes(x.data(), kCount), static_cast<double>(expected), 1e-11);
  EXPECT_EQ(kernels_->magnitudes(x.data(), 0), 0);
}

TEST_P(Variant, RoundsAProductAndItsSumOnce) {
  // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24, of which float32 keeps the last bit only if the sum
  // takes the rest away before it is rounded.
  const float x = 1 + 0x1p-12f;
  float sum = -1 - 0x1p-11f;
  kernels_->accumulate_product(x, &x, 1, &sum);
  EXPECT_EQ(sum, 0x1p-24f);
}

TEST_P(Variant, CountsAnElementWhereItsSignIsTheMajoritys) {
  const std::vector<float> x = {1, -1, 0, 2, -2, 3, -3, -0.0f};
  const std::vector<float> majority = {5, 5, 5, -5, -5, 0, 0, -5};
  std::vector<float> sums(x.size(), 10);
  std::vector<float> weights(x.size(), 0);
  kernels_->accumulate_agreeing(x.data(), majority.data(), 0.5f, 8, sums.data(), weights.data());
  EXPECT_EQ(sums, (std::vector<float>{11, 10, 10, 10, 8, 13, 10, 10}));
  EXPECT_EQ(weights, (std::vector<float>{0.5, 0, 0, 0, 0.5, 0.5, 0, 0}));
  kernels_->replace_zeros(weights.data(), 8);
  EXPECT_EQ(weights, (std::vector<float>{0.5, 1, 1, 1, 0.5, 0.5, 1, 1}));
}

TEST_P(Variant, KeepsWhatExceedsTheThresholdAndTheFirstOfItsEquals) {
  const LargestElements kept{.threshold = std::bit_cast<uint32_t>(2.0f), .equal_before = 103};
  std::vector<float> values = {-2, 1, 2, 2, -3, -2, 1.9f, 0};
  kernels_->keep_largest(kept, 100, 8, values.data());
  EXPECT_EQ(values, (std::vector<float>{-2, 0, 2, 0, -3, 0, 0, 0}));
}

TEST_P(Variant, DrawsDependOnKeyAndIndexOnly) {
  const RandomElements kept{.key = 0x123456789abcdefu, .limit = 1u << 31};
  const int64_t first = (int64_t{1} << 32) - 500;  // the upper half of the index changes inside
  std::vector<float> whole(kCount, 1.0f);
  kernels_->keep_random(kept, first, kCount, whole.data());
  std::vector<float> parts(kCount, 1.0f);
  for (int64_t begin = 0; begin < kCount; begin += 7) {
    kernels_->keep_random(kept, first + begin, std::min<int64_t>(7, kCount - begin),
                          parts.data() + begin);
  }
  EXPECT_EQ(parts, whole);
}

TEST_P(Variant, HasTheBitsOfThePortableOne) {
  const MergeKernels& portable = *FindMergeKernels("portable");
  const std::vector<float> x = RandomNumbers(kCount, 4);
  const std::vector<float> y = RandomNumbers(kCount, 5);
  const auto all = [&](const MergeKernels& kernels) {
    std::vector<std::vector<float>> results;
    const auto add = [&](auto&& fill) {
      std::vector<float> out = x;
      fill(out.data());
      results.push_back(out);
    };
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      const RoundedMergeKernels& rounded = kernels.rounded(dtype);
      add([&](float* out) { rounded.combine(0.3f, x.data(), 0.7f, y.data(), kCount, out); });
      add([&](float* out) { rounded.subtract(x.data(), y.data(), kCount, out); });
      add([&](float* out) { rounded.add(x.data(), y.data(), kCount, out); });
      add([&](float* out) { rounded.scale(0.3f, out, kCount); });
      add([&](float* out) { rounded.divide(y.data(), out, kCount); });
      add([&](float* out) { rounded.divide_by(0.3f, out, kCount); });
    }
    add([&](float* out) { kernels.accumulate(y.data(), kCount, out); });
    add([&](float* out) { kernels.accumulate_product(0.3f, y.data(), kCount, out); });
    add([&](float* out) { kernels.keep_random({77, 1u << 30}, 5, kCount, out); });
    return results;
  };
  EXPECT_EQ(all(*kernels_), all(portable));
  double sums[3] = {};
  double expected[3] = {};
  kernels_->products(x.data(), y.data(), kCount, sums);
  portable.products(x.data(), y.data(), kCount, expected);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(sums[i], expected[i]);
  EXPECT_EQ(kernels_->magnitudes(x.data(), kCount), portable.magnitudes(x.data(), kCount));
}

TEST(MergeKernels, UnknownVariantsAreNotThere) { EXPECT_EQ(FindMergeKernels("mmx"), nullptr); }

}  // namespace
}  // namespace marcoro
