#include "worker/weights/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace {

using testing::E4M3Value;
using testing::HalfValue;
using testing::ReadTensors;
using testing::StoredTensors;
using testing::TestData;

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

// The kernels of one instruction set, and of each that this processor runs.
std::vector<const RowKernels*> Variants() {
  std::vector<const RowKernels*> variants;
  for (const char* name : {"portable", "avx2", "avx512"}) {
    if (const RowKernels* kernels = FindRowKernels(name)) variants.push_back(kernels);
  }
  return variants;
}

class Golden : public ::testing::TestWithParam<const char*> {};

TEST_P(Golden, CodesAndScalesAreTheReferencesBitForBit) {
  const StoredTensors golden = ReadTensors(TestData(GetParam()), "golden");
  const auto& input = golden.at("quantize.input");
  const std::vector<float> numbers = input.Floats();
  const std::vector<float> scales = golden.at("quantize.scales").Floats();
  const std::string& codes = golden.at("quantize.codes").bytes;
  const int64_t columns = input.shape[1];
  for (int64_t row = 0; row < input.shape[0]; ++row) {
    const float* begin = numbers.data() + row * columns;
    float scale = 0;
    ASSERT_TRUE(RowScale(begin, columns, &scale));
    EXPECT_EQ(Bits(scale), Bits(scales[static_cast<size_t>(row)])) << "row " << row;
    for (const RowKernels* kernels : Variants()) {
      std::string actual(static_cast<size_t>(columns), '\xff');
      kernels->to_e4m3(begin, columns, scale, reinterpret_cast<uint8_t*>(actual.data()));
      EXPECT_EQ(actual, codes.substr(static_cast<size_t>(row * columns), actual.size()))
          << kernels->name << " row " << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Golden, ::testing::Values("tiny", "small", "window"));

TEST(RowScale, IsTheLargestMagnitudeOver448) {
  const std::vector<float> row = {0.5f, -896.0f, 3.0f};
  float scale = 0;
  ASSERT_TRUE(RowScale(row.data(), 3, &scale));
  EXPECT_EQ(scale, 2.0f);
}

TEST(RowScale, IsOneForARowOfZeros) {
  const std::vector<float> row = {0.0f, -0.0f, 0.0f};
  float scale = 0;
  ASSERT_TRUE(RowScale(row.data(), 3, &scale));
  EXPECT_EQ(scale, 1.0f);
}

TEST(RowScale, StaysAboveZeroForTheSmallestNumbers) {
  const std::vector<float> row = {std::numeric_limits<float>::denorm_min()};
  float scale = 0;
  ASSERT_TRUE(RowScale(row.data(), 1, &scale));
  EXPECT_GT(scale, 0.0f);
  uint8_t code = 0;
  QuantizeRow(row.data(), 1, scale, &code);
  EXPECT_EQ(E4M3Value(code) * scale, row[0]);
}

TEST(RowScale, RefusesEveryNumberThatIsNotFiniteAtEveryPlace) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
    for (size_t at = 0; at < 70; ++at) {
      std::vector<float> row(70, std::numeric_limits<float>::max());
      float scale = 0;
      EXPECT_TRUE(RowScale(row.data(), 70, &scale));
      row[at] = bad;
      EXPECT_FALSE(RowScale(row.data(), 70, &scale)) << bad << " at " << at;
      EXPECT_FALSE(AllFinite(row.data(), 70)) << bad << " at " << at;
    }
  }
}

// Every value, every midpoint between neighbours, and the floats next to it.
TEST(ToE4M3, RoundsToNearestEven) {
  for (const RowKernels* kernels : Variants()) {
    SCOPED_TRACE(kernels->name);
    const auto encode = [kernels](float value) {
      uint8_t code = 0xff;
      kernels->to_e4m3(&value, 1, 1.0f, &code);
      return code;
    };
    for (uint8_t code = 0; code <= 0x7e; ++code) {
      const float value = E4M3Value(code);
      EXPECT_EQ(encode(value), code);
      EXPECT_EQ(encode(-value), code | 0x80);
      if (code == 0x7e) break;
      const float middle = (value + E4M3Value(static_cast<uint8_t>(code + 1))) / 2;
      EXPECT_EQ(encode(middle), code % 2 == 0 ? code : code + 1) << middle;
      EXPECT_EQ(encode(std::nextafterf(middle, 0.0f)), code) << middle;
      EXPECT_EQ(encode(std::nextafterf(middle, 1000.0f)), code + 1) << middle;
    }
  }
}

TEST(FromE4M3, IsTheCodeTimesTheScaleForEveryCode) {
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i);
  for (const RowKernels* kernels : Variants()) {
    SCOPED_TRACE(kernels->name);
    for (const float scale : {1.0f, 0x1.234568p-7f, 0x1p-140f, 7e35f}) {
      std::vector<float> numbers(codes.size());
      kernels->from_e4m3(codes.data(), 256, scale, numbers.data());
      for (size_t i = 0; i < codes.size(); ++i) {
        const float expected = E4M3Value(codes[i]) * scale;
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(numbers[i])) << i;
        } else {
          ASSERT_EQ(Bits(numbers[i]), Bits(expected)) << i;
        }
      }
    }
  }
}

// Every finite half, every midpoint between neighbours, and the floats next to it.
TEST(ToF16, RoundsToNearestEven) {
  for (const RowKernels* kernels : Variants()) {
    SCOPED_TRACE(kernels->name);
    const auto encode = [kernels](float value) {
      uint16_t bits = 0xffff;
      kernels->to_f16(&value, 1, &bits);
      return bits;
    };
    for (uint16_t bits = 0; bits < 0x7c00; ++bits) {
      const float value = HalfValue(bits);
      ASSERT_EQ(encode(value), bits);
      ASSERT_EQ(encode(-value), bits | 0x8000);
      // Beyond the largest half lies 65536, were it not infinity.
      const float next = bits == 0x7bff ? 65536.0f : HalfValue(static_cast<uint16_t>(bits + 1));
      const float middle = (value + next) / 2;
      ASSERT_EQ(encode(middle), bits % 2 == 0 ? bits : bits + 1) << middle;
      ASSERT_EQ(encode(std::nextafterf(middle, 0.0f)), bits) << middle;
      ASSERT_EQ(encode(std::nextafterf(middle, 1e6f)), bits + 1) << middle;
    }
    EXPECT_EQ(encode(1e30f), 0x7c00);
  }
}

TEST(RoundToFloat16, RefusesWhatWouldBecomeInfinite) {
  uint16_t rounded = 0;
  const float largest = std::nextafterf(65520.0f, 0.0f);
  EXPECT_TRUE(RoundToFloat16(&largest, 1, &rounded));
  EXPECT_EQ(rounded, 0x7bff);
  const float beyond = -65520.0f;
  EXPECT_FALSE(RoundToFloat16(&beyond, 1, &rounded));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(RoundToFloat16(&nan, 1, &rounded));
}

TEST(RowScaleIn, IsTheScaleRoundedToItsType) {
  const std::vector<float> row = {0.3f, -0.7f};  // 0.7 / 448 = 0x1.99999ap-10
  float scale = 0;
  ASSERT_TRUE(RowScaleIn(DType::kF32, row.data(), 2, &scale));
  EXPECT_EQ(scale, 0.7f / 448);
  ASSERT_TRUE(RowScaleIn(DType::kBF16, row.data(), 2, &scale));
  EXPECT_EQ(scale, 0x1.9ap-10f);
  ASSERT_TRUE(RowScaleIn(DType::kF16, row.data(), 2, &scale));
  EXPECT_EQ(scale, 0x1.998p-10f);
}

// Halves are spaced by 2^-24 there: 448·1.4·2^-24 would be cut off by a fifth with the scale 2^-24.
TEST(RowScaleIn, IsRoundedUpWhereTheLargestNumberWouldBeCutOff) {
  const float largest = 448 * 1.4f * 0x1p-24f;
  float scale = 0;
  ASSERT_TRUE(RowScaleIn(DType::kF16, &largest, 1, &scale));
  EXPECT_EQ(scale, 0x1p-23f);
  const float tiny = 0x1p-40f;
  ASSERT_TRUE(RowScaleIn(DType::kF16, &tiny, 1, &scale));
  EXPECT_EQ(scale, 0x1p-24f);
}

TEST(RowScaleIn, IsOneForZerosAndNothingForNaN) {
  float scale = 0;
  const float zero = 0;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    ASSERT_TRUE(RowScaleIn(dtype, &zero, 1, &scale));
    EXPECT_EQ(scale, 1.0f);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT_FALSE(RowScaleIn(dtype, &nan, 1, &scale));
  }
}

TEST(ToE4M3, SaturatesAt448) {
  for (const RowKernels* kernels : Variants()) {
    SCOPED_TRACE(kernels->name);
    for (const float value : {449.0f, 464.0f, 1e30f, std::numeric_limits<float>::max()}) {
      const float both[] = {value, -value};
      uint8_t codes[2] = {};
      kernels->to_e4m3(both, 2, 1.0f, codes);
      EXPECT_EQ(codes[0], 0x7e) << value;
      EXPECT_EQ(codes[1], 0xfe) << value;
    }
  }
}

TEST(FromF16, IsExactForEveryBitPattern) {
  std::vector<uint16_t> halves(1 << 16);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  for (const RowKernels* kernels : Variants()) {
    SCOPED_TRACE(kernels->name);
    std::vector<float> floats(halves.size());
    kernels->from_f16(halves.data(), static_cast<int64_t>(halves.size()), floats.data());
    for (size_t i = 0; i < halves.size(); ++i) {
      const float expected = HalfValue(halves[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(floats[i])) << i;
      } else {
        ASSERT_EQ(Bits(floats[i]), Bits(expected)) << i;
      }
    }
  }
}

TEST(FromBF16, IsTheUpperHalfForEveryBitPattern) {
  std::vector<uint16_t> shorts(1 << 16);
  for (size_t i = 0; i < shorts.size(); ++i) shorts[i] = static_cast<uint16_t>(i);
  for (const RowKernels* kernels : Variants()) {
    std::vector<float> floats(shorts.size());
    kernels->from_bf16(shorts.data(), static_cast<int64_t>(shorts.size()), floats.data());
    for (size_t i = 0; i < shorts.size(); ++i) ASSERT_EQ(Bits(floats[i]), i << 16) << i;
  }
}

// In any place of a row, and of rows that leave a rest after any vector width.
TEST(MaxMagnitude16, IsTheLargestWithoutItsSign) {
  for (const RowKernels* kernels : Variants()) {
    SCOPED_TRACE(kernels->name);
    EXPECT_EQ(kernels->max_magnitude_16(nullptr, 0), 0);
    for (size_t count = 1; count < 200; count += 7) {
      for (size_t place = 0; place < count; ++place) {
        std::vector<uint16_t> row(count, 0x8001);
        EXPECT_EQ(kernels->max_magnitude_16(row.data(), static_cast<int64_t>(count)), 0x0001);
        for (const uint16_t largest : {0x3f80, 0xbf80, 0x7f7f, 0xff80, 0xffff}) {
          row[place] = largest;
          ASSERT_EQ(kernels->max_magnitude_16(row.data(), static_cast<int64_t>(count)),
                    largest & 0x7fff)
              << place << " of " << count;
        }
      }
    }
  }
}

// Between a BF16 value and the next there are 65536 floats: the halfway one goes to the even
// neighbour.
TEST(RoundToBFloat16, RoundsToNearestEven) {
  const std::vector<std::pair<uint32_t, uint16_t>> cases = {
      {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81},
      {0x3f817fff, 0x3f81}, {0x3f818000, 0x3f82}, {0xbf818000, 0xbf82}, {0x00000001, 0x0000},
      {0x80000000, 0x8000}, {0x7f7f7fff, 0x7f7f}, {0x007fffff, 0x0080}};
  std::vector<float> numbers;
  for (const auto& [bits, expected] : cases) numbers.push_back(std::bit_cast<float>(bits));
  std::vector<BFloat16> rounded(cases.size());
  ASSERT_TRUE(RoundToBFloat16(numbers.data(), static_cast<int64_t>(cases.size()), rounded.data()));
  for (size_t i = 0; i < cases.size(); ++i) EXPECT_EQ(rounded[i].bits, cases[i].second) << i;
}

TEST(RoundToBFloat16, RefusesWhatWouldBecomeInfinite) {
  BFloat16 rounded;
  const float largest = std::bit_cast<float>(0x7f7f7fffu);
  EXPECT_TRUE(RoundToBFloat16(&largest, 1, &rounded));
  const float beyond = std::bit_cast<float>(0x7f7f8000u);
  EXPECT_FALSE(RoundToBFloat16(&beyond, 1, &rounded));
}

// All kernels on numbers of every size, and lengths that leave a rest after any vector width.
TEST(RowKernels, VariantsGiveTheSameBits) {
  std::mt19937_64 random(20240607);
  const RowKernels& portable = *FindRowKernels("portable");
  for (int64_t count = 1; count < 200; count += 7) {
    const size_t size = static_cast<size_t>(count);
    std::vector<float> numbers(size);
    for (float& number : numbers) {
      number = std::ldexp(static_cast<float>(random() % 4001) - 2000.0f,
                          static_cast<int>(random() % 60) - 40);
    }
    const float scale = std::ldexp(1.0f + static_cast<float>(random() % 1000) / 1000.0f, 3);
    const uint64_t key = random();
    std::vector<uint8_t> codes(size);
    std::vector<uint16_t> shorts(size);
    std::vector<float> drawn(size);
    portable.to_e4m3(numbers.data(), count, scale, codes.data());
    portable.to_bf16(numbers.data(), count, shorts.data());
    portable.random(key, count, 0.02f, drawn.data());
    for (const RowKernels* kernels : Variants()) {
      SCOPED_TRACE(kernels->name);
      std::vector<uint8_t> other_codes(size);
      std::vector<uint16_t> other_shorts(size);
      std::vector<float> other_drawn(size);
      kernels->to_e4m3(numbers.data(), count, scale, other_codes.data());
      kernels->to_bf16(numbers.data(), count, other_shorts.data());
      kernels->random(key, count, 0.02f, other_drawn.data());
      EXPECT_EQ(codes, other_codes);
      EXPECT_EQ(shorts, other_shorts);
      EXPECT_EQ(drawn, other_drawn);
      std::vector<uint16_t> halves(size), other_halves(size);
      portable.to_f16(numbers.data(), count, halves.data());
      kernels->to_f16(numbers.data(), count, other_halves.data());
      EXPECT_EQ(halves, other_halves);
      std::vector<float> decoded(size), other_decoded(size);
      portable.from_e4m3(codes.data(), count, scale, decoded.data());
      kernels->from_e4m3(codes.data(), count, scale, other_decoded.data());
      EXPECT_EQ(decoded, other_decoded);
      EXPECT_EQ(kernels->max_magnitude(numbers.data(), count),
                portable.max_magnitude(numbers.data(), count));
    }
  }
}

}  // namespace
}  // namespace marcoro
