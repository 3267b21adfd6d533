// Stages of the backend "cuda": what they make of rows is what the host would have made and packed.
#include "kernels/cuda/row_stage.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "worker/weights/quantize.h"

#ifdef MARCORO_SIMT
#include "tests/kernels/simt/runtime_faults.h"
#endif

namespace marcoro::cuda {
namespace {

constexpr size_t kStageBytes = 256 * 1024;

// A weight in device memory.
struct DeviceWeight {
  explicit DeviceWeight(const WeightShape& shape)
      : bytes(WeightBytes(shape)), scales(static_cast<size_t>(shape.rows)) {
    weight.shape = shape;
    weight.data = bytes.data();
    if (shape.dtype == DType::kF8E4M3) weight.scales = scales.data();
  }

  DeviceArray<uint8_t> bytes;
  DeviceArray<float> scales;
  PackedWeight weight;
};

std::vector<uint32_t> Bits(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
  return bits;
}

void ExpectEqual(const DeviceWeight& expected, const DeviceWeight& actual) {
  EXPECT_EQ(expected.bytes.ToHost(), actual.bytes.ToHost());
  EXPECT_EQ(Bits(expected.scales.ToHost()), Bits(actual.scales.ToHost()));
}

std::vector<float> RandomNumbers(int64_t count) {
  std::mt19937 random(17);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& number : numbers) number = normal(random);
  return numbers;
}

std::unique_ptr<RowStage> MakeStage() {
  TestStream();
  auto stage = MakeRowStage(/*device=*/0, kStageBytes, DType::kBF16);
  CheckDevice(stage.status());
  return *std::move(stage);
}

template <typename T>
void Fill(const RowStage& stage, const T* values, int64_t count) {
  std::memcpy(stage.memory(), values, static_cast<size_t>(count) * sizeof(T));
}

// Columns [first_column, …) of the numbers into `weight`, by the host and PackWeight.
void PackOnHost(const std::vector<float>& numbers, int64_t columns, int64_t first_column,
                const DeviceWeight& to) {
  const WeightShape& shape = to.weight.shape;
  std::vector<uint8_t> codes(static_cast<size_t>(shape.rows * shape.columns));
  std::vector<float> scales(static_cast<size_t>(shape.rows));
  for (int64_t row = 0; row < shape.rows; ++row) {
    const float* begin = numbers.data() + row * columns;
    ASSERT_TRUE(RowScale(begin, columns, &scales[static_cast<size_t>(row)]));
    QuantizeRow(begin + first_column, shape.columns, scales[static_cast<size_t>(row)],
                codes.data() + row * shape.columns);
  }
  const DeviceArray<uint8_t> source{absl::MakeConstSpan(codes)};
  PackWeight(TestStream(), to.weight, 0, shape.rows, source.data());
  CopyToDevice(TestStream(), to.weight.scales, scales.data(), scales.size() * sizeof(float));
  CheckDevice(Synchronize(TestStream()));
}

TEST(CudaRowStageTest, QuantizesPiecesOfAWeightAsTheHostDoes) {
  constexpr int64_t kColumns = 192;
  const WeightShape shape = {DType::kF8E4M3, 64 + 24, kColumns / 2, 2};
  const std::vector<float> numbers = RandomNumbers(shape.rows * kColumns);
  for (const int64_t first_column : {int64_t{0}, kColumns / 2}) {
    const DeviceWeight expected(shape);
    PackOnHost(numbers, kColumns, first_column, expected);
    const DeviceWeight actual(shape);
    const auto stage = MakeStage();
    for (const int64_t first : {0, 64}) {  // the last piece is ragged
      const int64_t count = std::min<int64_t>(64, shape.rows - first);
      Fill(*stage, numbers.data() + first * kColumns, count * kColumns);
      ASSERT_TRUE(stage
                      ->Pack({.dtype = DType::kF32,
                              .count = count,
                              .columns = kColumns,
                              .first_column = first_column},
                             actual.weight, first)
                      .ok());
      const auto finite = stage->Wait();
      ASSERT_TRUE(finite.ok()) << finite.status();
      EXPECT_TRUE(*finite);
    }
    ExpectEqual(expected, actual);
  }
}

TEST(CudaRowStageTest, CodesAndScalesGoOnAsTheyAre) {
  const WeightShape shape = {DType::kF8E4M3, 40, 100, 1};
  std::vector<uint8_t> codes(40 * 100);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i % 127);
  const std::vector<float> scales = RandomNumbers(40);
  const DeviceWeight expected(shape);
  const DeviceArray<uint8_t> source{absl::MakeConstSpan(codes)};
  PackWeight(TestStream(), expected.weight, 0, 40, source.data());
  CopyToDevice(TestStream(), expected.weight.scales, scales.data(), 40 * sizeof(float));

  const auto stage = MakeStage();
  Fill(*stage, codes.data(), 40 * 100);
  auto* staged_scales = reinterpret_cast<float*>(static_cast<char*>(stage->memory()) + 4032);
  std::memcpy(staged_scales, scales.data(), 40 * sizeof(float));
  const DeviceWeight actual(shape);
  ASSERT_TRUE(
      stage
          ->Pack({.dtype = DType::kF8E4M3, .count = 40, .columns = 100, .scales = staged_scales},
                 actual.weight, 0)
          .ok());
  EXPECT_TRUE(stage->Wait().value());
  ExpectEqual(expected, actual);
}

TEST(CudaRowStageTest, RoundsIntoBf16Weights) {
  const WeightShape shape = {DType::kBF16, 64, 96, 1};
  const std::vector<float> numbers = RandomNumbers(64 * 96);
  std::vector<uint16_t> rounded;
  for (const float number : numbers) rounded.push_back(ToBFloat16(number).bits);
  const DeviceWeight expected(shape);
  const DeviceArray<uint16_t> source{absl::MakeConstSpan(rounded)};
  PackWeight(TestStream(), expected.weight, 0, 64, source.data());

  const auto stage = MakeStage();
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    if (dtype == DType::kF32) Fill(*stage, numbers.data(), 64 * 96);
    if (dtype == DType::kBF16) Fill(*stage, rounded.data(), 64 * 96);
    const DeviceWeight actual(shape);
    ASSERT_TRUE(stage->Pack({.dtype = dtype, .count = 64, .columns = 96}, actual.weight, 0).ok());
    EXPECT_TRUE(stage->Wait().value());
    ExpectEqual(expected, actual);
  }
}

TEST(CudaRowStageTest, CopiesRowsOfATable) {
  const std::vector<float> numbers = RandomNumbers(3 * 10);
  const DeviceArray<uint16_t> table(5 * 10);
  const auto stage = MakeStage();
  Fill(*stage, numbers.data(), 30);
  const Tensor matrix(table.data(), DType::kBF16, 5, 10);
  ASSERT_TRUE(
      stage->Copy({.dtype = DType::kF32, .count = 3, .columns = 10}, matrix.Rows(1, 3)).ok());
  EXPECT_TRUE(stage->Wait().value());
  std::vector<uint16_t> expected(10, 0xffff);
  for (const float number : numbers) expected.push_back(ToBFloat16(number).bits);
  expected.resize(50, 0xffff);
  EXPECT_EQ(table.ToHost(), expected);
}

TEST(CudaRowStageTest, TellsOfNumbersThatAreNotFiniteOnceAndGoesOn) {
  const DeviceWeight to({DType::kF8E4M3, 16, 64, 1});
  std::vector<float> numbers = RandomNumbers(16 * 64);
  const auto stage = MakeStage();
  EXPECT_TRUE(stage->Wait().value()) << "nothing was queued yet";
  for (const bool bad : {false, true, false}) {
    numbers[777] = bad ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
    Fill(*stage, numbers.data(), 16 * 64);
    const StagedRows rows = {.dtype = DType::kF32, .count = 16, .columns = 64};
    ASSERT_TRUE(stage->Pack(rows, to.weight, 0).ok());
    EXPECT_EQ(stage->Wait().value(), !bad);
  }
}

#ifdef MARCORO_SIMT
TEST(CudaRowStageTest, AFailedCopyIsTold) {
  const DeviceWeight to({DType::kBF16, 16, 64, 1});
  const auto stage = MakeStage();
  Fill(*stage, RandomNumbers(16 * 64).data(), 16 * 64);
  const StagedRows rows = {.dtype = DType::kF32, .count = 16, .columns = 64};
  const simt::FailingCopies failing(/*first_to_fail=*/1);
  ASSERT_TRUE(stage->Pack(rows, to.weight, 0).ok());
  EXPECT_TRUE(stage->Wait().ok());
  ASSERT_TRUE(stage->Pack(rows, to.weight, 0).ok());
  EXPECT_EQ(stage->Wait().status().code(), absl::StatusCode::kInternal);
}
#endif

}  // namespace
}  // namespace marcoro::cuda
