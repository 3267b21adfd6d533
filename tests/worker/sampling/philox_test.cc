#include "worker/sampling/philox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

namespace marcoro {
namespace {

using ::testing::ElementsAre;

// Known answers that the authors of Philox publish with Random123 (kat_vectors, philox4x32 10).
TEST(PhiloxTest, GivesThePublishedAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_THAT(
      Philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, {0xffffffffu, 0xffffffffu}),
      ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(
      Philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
      ElementsAre(0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u));
}

TEST(PhiloxTest, BitsAreTheUpper53OfTheFirstTwoWords) {
  EXPECT_EQ(RandomBits53(0, 0), 0xe169c58d6627e8d5u >> 11);
  EXPECT_DOUBLE_EQ(UniformDraw(0, 0), static_cast<double>(0xe169c58d6627e8d5u) / 0x1p64);
}

TEST(PhiloxTest, AllBitsOfSeedAndPositionMatter) {
  const uint64_t bits = RandomBits53(1, 1);
  for (int shift = 1; shift < 64; ++shift) {
    EXPECT_NE(RandomBits53(1 | uint64_t{1} << shift, 1), bits) << shift;
    EXPECT_NE(RandomBits53(1, 1 | uint64_t{1} << shift), bits) << shift;
  }
}

TEST(PhiloxTest, DrawsAreUniform) {
  constexpr int kDraws = 100000;
  constexpr int kBins = 100;
  std::array<int, kBins> bins = {};
  for (int i = 0; i < kDraws; ++i) {
    const double draw = UniformDraw(42, i);
    ASSERT_GE(draw, 0);
    ASSERT_LT(draw, 1);
    ++bins[static_cast<int>(draw * kBins)];
  }
  double chi_square = 0;
  for (const int count : bins) {
    const double expected = static_cast<double>(kDraws) / kBins;
    chi_square += (count - expected) * (count - expected) / expected;
  }
  EXPECT_LT(chi_square, 148.2) << "the 0.999 quantile of 99 degrees of freedom";
}

}  // namespace
}  // namespace marcoro
