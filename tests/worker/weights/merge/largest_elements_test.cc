#include "worker/weights/merge/largest_elements.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "tests/worker/weights/merge/merge_testing.h"

namespace marcoro {
namespace {

using testing::RandomNumbers;
using testing::Store;

// Inputs held in memory.
class Inputs : public MergeInputs {
 public:
  Inputs(DType dtype, int64_t columns, std::vector<std::vector<float>> inputs)
      : dtype_(dtype), columns_(columns), inputs_(std::move(inputs)) {
    const char* name = dtype == DType::kBF16 ? "BF16" : dtype == DType::kF16 ? "F16" : "F32";
    for (std::vector<float>& input : inputs_) input = Store(name, {}, input).Floats();
  }

  int64_t rows() const override { return static_cast<int64_t>(inputs_[0].size()) / columns_; }
  int64_t columns() const override { return columns_; }
  DType dtype() const override { return dtype_; }
  absl::Status ReadRows(int32_t input, int64_t first_row, int64_t count,
                        float* out) const override {
    const std::vector<float>& numbers = inputs_[static_cast<size_t>(input)];
    std::copy_n(numbers.begin() + first_row * columns_, count * columns_, out);
    return absl::OkStatus();
  }

 private:
  const DType dtype_;
  const int64_t columns_;
  std::vector<std::vector<float>> inputs_;
};

// The indices of the k greatest magnitudes, the first of equals: by sorting.
std::vector<bool> SortedOut(const std::vector<float>& numbers, int64_t k) {
  std::vector<size_t> order(numbers.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const float difference = std::fabs(numbers[a]) - std::fabs(numbers[b]);
    return difference > 0 || (difference == 0 && a < b);
  });
  std::vector<bool> kept(numbers.size());
  for (int64_t i = 0; i < k; ++i) kept[order[static_cast<size_t>(i)]] = true;
  return kept;
}

std::vector<bool> Selected(const std::vector<float>& numbers, const LargestElements& found) {
  std::vector<bool> kept;
  for (size_t i = 0; i < numbers.size(); ++i) {
    float number = numbers[i] == 0 ? 1e-40f : numbers[i];  // zeros may be kept too
    if (numbers[i] == 0 && found.threshold == 0) {
      kept.push_back(static_cast<int64_t>(i) < found.equal_before);
      continue;
    }
    GetMergeKernels().keep_largest(found, static_cast<int64_t>(i), 1, &number);
    kept.push_back(number != 0);
  }
  return kept;
}

class Largest : public ::testing::TestWithParam<DType> {
 protected:
  // Two differences from a base of zeros, in several pieces.
  void Check(const std::vector<float>& first, const std::vector<float>& second, int64_t columns,
             int64_t first_count, int64_t second_count) {
    const Inputs inputs(GetParam(), columns, {std::vector<float>(first.size()), first, second});
    const std::vector<LargestRequest> requests = {{1, first_count}, {2, second_count}};
    for (const int threads : {1, 3}) {
      auto found = FindLargest(inputs, 0, requests, testing::Threads(threads));
      ASSERT_TRUE(found.ok()) << found.status();
      for (const LargestRequest& request : requests) {
        std::vector<float> numbers(first.size());
        ASSERT_TRUE(inputs.ReadRows(request.input, 0, inputs.rows(), numbers.data()).ok());
        const LargestElements& answer = (*found)[static_cast<size_t>(request.input - 1)];
        EXPECT_EQ(Selected(numbers, answer), SortedOut(numbers, request.count))
            << "input " << request.input;
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Types, Largest, ::testing::Values(DType::kBF16, DType::kF16, DType::kF32),
                         [](const auto& type) {
                           return type.param == DType::kBF16  ? "BF16"
                                  : type.param == DType::kF16 ? "F16"
                                                              : "F32";
                         });

TEST_P(Largest, AreThoseThatSortingFinds) {
  const std::vector<float> first = RandomNumbers(60'000, 1);
  const std::vector<float> second = RandomNumbers(60'000, 2, 1e-3);
  for (const int64_t count : {1, 2, 999, 30'000, 59'999, 60'000}) {
    Check(first, second, 600, count, 60'001 - count);
  }
}

TEST_P(Largest, OfManyEqualsAreTheFirst) {
  std::vector<float> few(60'000);
  for (size_t i = 0; i < few.size(); ++i) few[i] = static_cast<float>(i * i % 5) - 2;
  const std::vector<float> same(few.size(), -0.5f);
  for (const int64_t count : {1, 20'000, 20'001, 45'000, 60'000}) {
    Check(few, same, 1000, count, count);
  }
}

TEST_P(Largest, MayLieInOneLongRow) {
  Check(RandomNumbers(50'000, 3), RandomNumbers(50'000, 4), 50'000, 12'345, 49'999);
}

TEST(LargestElements, AreOfTheDifferenceAfterItIsRounded) {
  // 1.0078125 - 2^-9 is 1.005859375, which BF16 rounds to 1.0078125: equal to the second element,
  // so that the first of them is the one that stays.
  const Inputs inputs(DType::kBF16, 2, {{0x1p-9f, 0}, {1.0078125f, 1.0078125f}});
  const std::vector<LargestRequest> requests = {{1, 1}};
  const auto found = FindLargest(inputs, 0, requests, testing::Threads(1));
  ASSERT_TRUE(found.ok());
  EXPECT_EQ((*found)[0].threshold, std::bit_cast<uint32_t>(1.0078125f));
  EXPECT_EQ((*found)[0].equal_before, 1);
}

}  // namespace
}  // namespace marcoro
