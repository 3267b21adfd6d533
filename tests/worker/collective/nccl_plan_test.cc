#include "worker/collective/nccl_plan.h"

#include <gtest/gtest.h>

namespace marcoro {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(NcclPlanTest, PiecesCoverTheMessageInOrderAndFitTheScratch) {
  for (const int ranks : {2, 4, 8}) {
    for (const size_t count : {size_t{1}, size_t{4096}, size_t{70'001}, kMiB - 1, 5 * kMiB + 3,
                               16 * kMiB, 33 * kMiB + 77}) {
      SCOPED_TRACE(testing::Message() << count << " elements, " << ranks << " ranks");
      size_t next = 0;
      for (const ReducePiece& piece : PlanReduce(count, ranks)) {
        EXPECT_EQ(piece.begin, next);
        ASSERT_GT(piece.count, 0u);
        next += piece.count;
        // Slices receive one slice of each rank, whole pieces all of each rank.
        const size_t received = piece.slices ? piece.count : piece.count * ranks;
        EXPECT_LE(received, kReduceScratchElements);
        if (piece.slices) {
          EXPECT_EQ(piece.count % static_cast<size_t>(ranks), 0u);
          EXPECT_EQ(piece.begin % 4, 0u);  // what comes behind is aligned to 16 bytes
          EXPECT_EQ(piece.count / static_cast<size_t>(ranks) % 4, 0u);
        }
      }
      EXPECT_EQ(next, count);
    }
  }
  EXPECT_TRUE(PlanReduce(0, 4).empty());
}

TEST(NcclPlanTest, TwoRanksMoveNoMoreWholeThanBySlices) {
  const auto pieces = PlanReduce(kMiB, 2);
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_FALSE(pieces[0].slices);
}

// A prefill chunk of 512 tokens of 4096: whole, each of 8 ranks would send 7 times 8 MiB; by slices
// 1.75 times.
TEST(NcclPlanTest, ManyRanksTakeSlicesForLargeMessages) {
  const auto pieces = PlanReduce(512 * 4096, 8);
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_TRUE(pieces[0].slices);
  EXPECT_FALSE(PlanReduce(4096, 8)[0].slices);
}

TEST(NcclPlanTest, WhatDoesNotDivideIsLeftToAWholePiece) {
  const auto pieces = PlanReduce(2 * kMiB + 5, 8);
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_TRUE(pieces[0].slices);
  EXPECT_FALSE(pieces[1].slices);
  EXPECT_EQ(pieces[1].count, 5u);
}

// 4096 columns: a rank sends 16 KiB for a token to each of its peers, 2 MiB in all at most.
TEST(NcclPlanTest, DecodeStepsAreOneShot) {
  EXPECT_TRUE(IsOneShotSize(128 * 4096, 2));
  EXPECT_FALSE(IsOneShotSize(129 * 4096, 2));
  EXPECT_TRUE(IsOneShotSize(18 * 4096, 8));
  EXPECT_FALSE(IsOneShotSize(19 * 4096, 8));
}

TEST(NcclPlanTest, ASlotHoldsARowIfItsSumCanBeFused) {
  EXPECT_EQ(SlotElements(64), 4096);
  EXPECT_EQ(SlotElements(4096), 4096);
  EXPECT_EQ(SlotElements(5121), 5124);
  EXPECT_EQ(SlotElements(8192), 8192);
  EXPECT_EQ(SlotElements(12288), 4096);
}

}  // namespace
}  // namespace marcoro
