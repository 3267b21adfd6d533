// Stored numbers into codes with scales, and into BF16: bit for bit what the host makes of them.
#include "worker/weights/quantize.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/random_seed.h"
#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/row_kernels.h"

namespace marcoro::cuda {
namespace {

constexpr DType kStoredTypes[] = {DType::kBF16, DType::kF16, DType::kF32};

// A matrix as a checkpoint stores it, and its numbers.
struct Stored {
  DType dtype;
  int64_t rows;
  int64_t columns;
  std::vector<uint8_t> bytes;
  std::vector<float> numbers;

  // From bits of the type.
  template <typename Bits>
  static Stored FromBits(DType dtype, int64_t rows, const std::vector<Bits>& bits) {
    Stored stored{dtype, rows, static_cast<int64_t>(bits.size()) / rows, {}, {}};
    stored.bytes.resize(bits.size() * sizeof(Bits));
    std::memcpy(stored.bytes.data(), bits.data(), stored.bytes.size());
    for (const Bits element : bits) {
      if constexpr (sizeof(Bits) == 4) {
        stored.numbers.push_back(std::bit_cast<float>(element));
      } else {
        stored.numbers.push_back(dtype == DType::kBF16 ? ToFloat(BFloat16{element})
                                                       : testing::HalfValue(element));
      }
    }
    return stored;
  }
  // From numbers, which are rounded to the type.
  static Stored FromNumbers(DType dtype, int64_t rows, const std::vector<float>& numbers) {
    if (dtype == DType::kF32) {
      std::vector<uint32_t> bits(numbers.size());
      std::memcpy(bits.data(), numbers.data(), numbers.size() * sizeof(float));
      return FromBits(dtype, rows, bits);
    }
    std::vector<uint16_t> bits(numbers.size());
    const RowKernels& kernels = *FindRowKernels("portable");
    (dtype == DType::kBF16 ? kernels.to_bf16 : kernels.to_f16)(
        numbers.data(), static_cast<int64_t>(numbers.size()), bits.data());
    return FromBits(dtype, rows, bits);
  }
  const float* Row(int64_t row) const { return numbers.data() + row * columns; }
};

// Rows of very different sizes, all zeros among them.
Stored Random(DType dtype, int64_t rows, int64_t columns, uint32_t seed) {
  std::mt19937 random(RandomSeed(seed));
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(rows * columns));
  for (int64_t row = 0; row < rows; ++row) {
    const float size = row % 5 == 4 ? 0.0f : std::ldexp(1.0f, static_cast<int>(row % 7) * 3 - 12);
    for (int64_t i = 0; i < columns; ++i) {
      numbers[static_cast<size_t>(row * columns + i)] = normal(random) * size;
    }
  }
  return Stored::FromNumbers(dtype, rows, numbers);
}

struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  bool finite = true;
};

struct Columns {
  int64_t first;
  int64_t count;
};

NumberRows View(const Stored& stored, const DeviceArray<uint8_t>& memory, const Columns& kept) {
  return {.data = memory.data(),
          .dtype = stored.dtype,
          .count = static_cast<int>(stored.rows),
          .columns = static_cast<int>(stored.columns),
          .first_column = static_cast<int>(kept.first),
          .kept_columns = static_cast<int>(kept.count)};
}

Quantized OnDevice(const Stored& stored, const Columns& kept) {
  const DeviceArray<uint8_t> memory{absl::MakeConstSpan(stored.bytes)};
  const DeviceArray<uint8_t> codes(static_cast<size_t>(stored.rows * kept.count));
  const DeviceArray<float> scales(static_cast<size_t>(stored.rows));
  DeviceArray<uint32_t> not_finite(1);
  not_finite.CopyFrom({0u});
  QuantizeRows(TestStream(), View(stored, memory, kept), codes.data(), scales.data(),
               not_finite.data());
  return {codes.ToHost(), scales.ToHost(), not_finite.ToHost()[0] == 0};
}

Quantized OnHost(const Stored& stored, const Columns& kept) {
  Quantized result;
  result.codes.resize(static_cast<size_t>(stored.rows * kept.count));
  result.scales.resize(static_cast<size_t>(stored.rows));
  for (int64_t row = 0; row < stored.rows; ++row) {
    float* scale = &result.scales[static_cast<size_t>(row)];
    result.finite &= RowScale(stored.Row(row), stored.columns, scale);
    QuantizeRow(stored.Row(row) + kept.first, kept.count, *scale,
                result.codes.data() + row * kept.count);
  }
  return result;
}

void ExpectEqual(const Quantized& expected, const Quantized& actual) {
  EXPECT_EQ(expected.finite, actual.finite);
  ASSERT_EQ(expected.scales.size(), actual.scales.size());
  for (size_t row = 0; row < expected.scales.size(); ++row) {
    EXPECT_EQ(std::bit_cast<uint32_t>(expected.scales[row]),
              std::bit_cast<uint32_t>(actual.scales[row]))
        << "row " << row;
  }
  ASSERT_EQ(expected.codes.size(), actual.codes.size());
  for (size_t i = 0; i < expected.codes.size(); ++i) {
    ASSERT_EQ(int{expected.codes[i]}, int{actual.codes[i]}) << "code " << i;
  }
}

TEST(CudaQuantizeTest, GivesTheGoldenCodesAndScales) {
  for (const char* checkpoint : {"tiny", "small", "window"}) {
    SCOPED_TRACE(checkpoint);
    const auto golden =
        testing::ReadTensors(std::string(MARCORO_TEST_DATA) + "/" + checkpoint, "golden");
    const testing::StoredTensor& input = golden.at("quantize.input");
    const Stored stored = Stored::FromNumbers(DType::kF32, input.shape[0], input.Floats());
    const Quantized actual = OnDevice(stored, {0, stored.columns});
    const std::string& codes = golden.at("quantize.codes").bytes;
    ExpectEqual({{codes.begin(), codes.end()}, golden.at("quantize.scales").Floats()}, actual);
  }
}

TEST(CudaQuantizeTest, GivesTheHostsCodesForEveryTypeAndSize) {
  for (const DType dtype : kStoredTypes) {
    for (const int64_t columns : {1, 3, 4, 127, 128, 130, 516, 1025}) {
      SCOPED_TRACE(::testing::Message() << "type " << static_cast<int>(dtype) << ", " << columns);
      const Stored stored = Random(dtype, 11, columns, 7);
      const Quantized expected = OnHost(stored, {0, columns});
      InSeveralThreadOrders([&] { ExpectEqual(expected, OnDevice(stored, {0, columns})); });
    }
  }
}

TEST(CudaQuantizeTest, TheScaleIsTheWholeRowsWhereverItIsCut) {
  for (const DType dtype : kStoredTypes) {
    const Stored stored = Random(dtype, 6, 264, 3);
    for (const Columns kept :
         {Columns{0, 132}, Columns{132, 132}, Columns{1, 7}, Columns{263, 1}, Columns{130, 134}}) {
      SCOPED_TRACE(::testing::Message() << "from " << kept.first << ", " << kept.count);
      ExpectEqual(OnHost(stored, kept), OnDevice(stored, kept));
    }
  }
}

// Each of the type's 65,536 numbers, over its row's largest: ties, subnormals and -0 among them.
TEST(CudaQuantizeTest, EveryNumberOfTheShortTypes) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const uint32_t infinity = dtype == DType::kBF16 ? 0x7f80 : 0x7c00;
    std::vector<uint16_t> bits;
    for (uint32_t i = 0; i < 0x10000; ++i) {
      bits.push_back(static_cast<uint16_t>((i & 0x7fff) < infinity ? i : i & 0x8000));
    }
    const Stored stored = Stored::FromBits(dtype, 256, bits);
    const Quantized actual = OnDevice(stored, {0, stored.columns});
    EXPECT_TRUE(actual.finite);
    ExpectEqual(OnHost(stored, {0, stored.columns}), actual);
  }
}

TEST(CudaQuantizeTest, TheSmallestAndTheLargestFloats) {
  constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
  constexpr float kLargest = std::numeric_limits<float>::max();
  const std::vector<float> numbers = {
      kSmallest,       -kSmallest, 0,      // a scale that would round to zero
      300 * kSmallest, kSmallest,  -0.0f,  // a subnormal scale, too small for its row
      kLargest,        -kLargest,  1,      // nothing overflows
      1e-38f,          3e-39f,     -2e-40f,
  };
  const Stored stored = Stored::FromNumbers(DType::kF32, 4, numbers);
  const Quantized actual = OnDevice(stored, {0, 3});
  EXPECT_TRUE(actual.finite);
  EXPECT_EQ(actual.scales[0], kSmallest);
  ExpectEqual(OnHost(stored, {0, 3}), actual);
}

// The rows beside it keep their codes.
TEST(CudaQuantizeTest, TellsOfNumbersThatAreNotFiniteAnywhereInARow) {
  for (const DType dtype : kStoredTypes) {
    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()}) {
      for (const int64_t at : {0, 130, 132}) {
        std::vector<float> numbers = Random(DType::kF32, 3, 133, 5).numbers;
        numbers[static_cast<size_t>(133 + at)] = 0;
        Stored stored = Stored::FromNumbers(dtype, 3, numbers);
        // The converters of finite numbers know no NaN.
        const uint32_t float_bits = std::bit_cast<uint32_t>(bad);
        const uint16_t half = std::isnan(bad) ? 0x7e00 : bad > 0 ? 0x7c00 : 0xfc00;
        const size_t element = static_cast<size_t>(133 + at);
        if (dtype == DType::kF32) std::memcpy(&stored.bytes[element * 4], &float_bits, 4);
        const uint16_t short_bits =
            dtype == DType::kF16 ? half : static_cast<uint16_t>(float_bits >> 16);
        if (dtype != DType::kF32) std::memcpy(&stored.bytes[element * 2], &short_bits, 2);
        // Not among the columns that are kept, but of the row.
        const Quantized actual = OnDevice(stored, {4, 32});
        EXPECT_FALSE(actual.finite) << bad << " at " << at;
        const Quantized expected = OnHost(Stored::FromNumbers(dtype, 3, numbers), {4, 32});
        for (size_t i = 0; i < 32; ++i) {
          EXPECT_EQ(actual.codes[i], expected.codes[i]);
          EXPECT_EQ(actual.codes[64 + i], expected.codes[64 + i]);
        }
      }
    }
  }
}

// `rows` rounded to BF16 into a matrix with something between its rows.
struct Rounded {
  std::vector<uint16_t> elements;
  bool finite;
};
Rounded Round(const Stored& stored, const Columns& kept, int64_t stride) {
  const DeviceArray<uint8_t> memory{absl::MakeConstSpan(stored.bytes)};
  const DeviceArray<uint16_t> out(static_cast<size_t>(stored.rows * stride));
  DeviceArray<uint32_t> not_finite(1);
  not_finite.CopyFrom({0u});
  Tensor matrix(out.data(), DType::kBF16, stored.rows, kept.count);
  matrix.stride = stride;
  RoundRows(TestStream(), View(stored, memory, kept), matrix, not_finite.data());
  return {out.ToHost(), not_finite.ToHost()[0] == 0};
}

TEST(CudaRoundTest, GivesTheNearestBf16OfEveryTypeAndSize) {
  for (const DType dtype : kStoredTypes) {
    for (const Columns kept : {Columns{0, 260}, Columns{1, 5}, Columns{128, 132}}) {
      for (const int64_t stride : {kept.count, kept.count + 3}) {
        SCOPED_TRACE(::testing::Message() << static_cast<int>(dtype) << " from " << kept.first);
        const Stored stored = Random(dtype, 9, 260, 11);
        const Rounded actual = Round(stored, kept, stride);
        EXPECT_TRUE(actual.finite);
        for (int64_t row = 0; row < 9; ++row) {
          for (int64_t i = 0; i < stride; ++i) {
            const uint16_t expected =
                i < kept.count ? ToBFloat16(stored.Row(row)[kept.first + i]).bits : 0xffff;
            ASSERT_EQ(actual.elements[static_cast<size_t>(row * stride + i)], expected)
                << "row " << row << ", " << i;
          }
        }
      }
    }
  }
}

TEST(CudaRoundTest, TellsOfWhatIsNotFiniteOrWouldNotBeAmongTheKeptColumns) {
  const float most = std::bit_cast<float>(0x7f7f7fffu);  // the largest that rounds to a number
  std::vector<float> numbers(2 * 8, most);
  const auto is_finite = [&](const Columns& kept) {
    return Round(Stored::FromNumbers(DType::kF32, 2, numbers), kept, kept.count).finite;
  };
  EXPECT_TRUE(is_finite({0, 8}));
  for (const float bad :
       {std::bit_cast<float>(0x7f7f8000u), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    numbers[8 + 5] = bad;
    EXPECT_FALSE(is_finite({0, 8})) << bad;
    EXPECT_FALSE(is_finite({5, 1})) << bad;
    EXPECT_TRUE(is_finite({0, 5})) << bad;
    EXPECT_TRUE(is_finite({6, 2})) << bad;
  }
}

}  // namespace
}  // namespace marcoro::cuda
