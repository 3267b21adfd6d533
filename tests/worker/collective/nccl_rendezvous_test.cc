#include "worker/collective/nccl_rendezvous.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/worker/collective/ranks.h"

namespace marcoro {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(30);

RankDevice On(const std::string& host, const std::string& gpu,
              DeviceCollective choice = DeviceCollective::kAuto) {
  return {.choice = choice, .host = host, .gpu = gpu};
}

TEST(DeviceCollectiveTest, NamesAreThoseOfTheFlag) {
  EXPECT_EQ(*ParseDeviceCollective("auto"), DeviceCollective::kAuto);
  EXPECT_EQ(*ParseDeviceCollective("nccl"), DeviceCollective::kNccl);
  EXPECT_EQ(*ParseDeviceCollective("peer-memory"), DeviceCollective::kPeerMemory);
  EXPECT_EQ(*ParseDeviceCollective("gloo"), DeviceCollective::kStaged);
  EXPECT_EQ(*ParseDeviceCollective("shared-memory"), DeviceCollective::kStaged);
  EXPECT_TRUE(absl::IsInvalidArgument(ParseDeviceCollective("staged").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ParseDeviceCollective("").status()));
}

TEST(RankDeviceTest, SurvivesTheKeyStore) {
  for (const RankDevice& device :
       {On("host a\n", "0000:3b:00", DeviceCollective::kPeerMemory), On("", ""),
        On(std::string("\0\xff", 2), "g", DeviceCollective::kStaged)}) {
    const auto decoded = DecodeRankDevice(EncodeRankDevice(device));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, device);
  }
}

TEST(RankDeviceTest, RefusesWhatItDidNotWrite) {
  for (const std::string text :
       {"", "device/1", "device/2 0 61 62", "device/1 4 61 62", "device/1 0 6 62",
        "device/1 0 61 6x", "device/1 0 61 62 63", "device/1 00 61 62", "device/1  61 62"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(DecodeRankDevice(text).status())) << text;
  }
}

TEST(DevicePathTest, RanksWithAGpuEachTakeNcclAndPeerMemoryOnOneHost) {
  const auto path = ChooseDevicePath({On("a", "0"), On("a", "1")});
  ASSERT_TRUE(path.ok());
  EXPECT_TRUE(path->nccl);
  EXPECT_TRUE(path->peer_memory);
  EXPECT_TRUE(path->may_do_without);
}

TEST(DevicePathTest, AcrossHostsNcclIsAlone) {
  const auto path = ChooseDevicePath({On("a", "0"), On("a", "1"), On("b", "0"), On("b", "1")});
  ASSERT_TRUE(path.ok());
  EXPECT_TRUE(path->nccl);
  EXPECT_FALSE(path->peer_memory);
}

TEST(DevicePathTest, RanksThatShareAGpuTakePeerMemory) {
  const auto path = ChooseDevicePath({On("a", "0"), On("a", "0")});
  ASSERT_TRUE(path.ok());
  EXPECT_FALSE(path->nccl);
  EXPECT_TRUE(path->peer_memory);
}

TEST(DevicePathTest, SharedGpusOnSeveralHostsAreStaged) {
  const auto path = ChooseDevicePath({On("a", "0"), On("a", "0"), On("b", "0"), On("b", "0")});
  ASSERT_TRUE(path.ok());
  EXPECT_FALSE(path->nccl);
  EXPECT_FALSE(path->peer_memory);
}

// A rank without a host's name shares with nobody, not even with another such rank.
TEST(DevicePathTest, RanksThatDoNotSayWhereTheyAreShareNothing) {
  const auto path = ChooseDevicePath({On("", "0"), On("", "0")});
  ASSERT_TRUE(path.ok());
  EXPECT_TRUE(path->nccl);
  EXPECT_FALSE(path->peer_memory);
}

TEST(DevicePathTest, RootsChoiceCounts) {
  const auto staged = ChooseDevicePath({On("a", "0", DeviceCollective::kStaged), On("a", "1")});
  ASSERT_TRUE(staged.ok());
  EXPECT_FALSE(staged->nccl || staged->peer_memory);

  const auto peer = ChooseDevicePath(
      {On("a", "0", DeviceCollective::kPeerMemory), On("a", "1", DeviceCollective::kNccl)});
  ASSERT_TRUE(peer.ok());
  EXPECT_FALSE(peer->nccl);
  EXPECT_TRUE(peer->peer_memory);
  EXPECT_FALSE(peer->may_do_without);
}

TEST(DevicePathTest, SaysWhichRanksStandInTheWay) {
  const auto shared = ChooseDevicePath(
      {On("a", "0", DeviceCollective::kNccl), On("a", "1"), On("b", "7"), On("b", "7")});
  EXPECT_TRUE(absl::IsFailedPrecondition(shared.status()));
  EXPECT_THAT(std::string(shared.status().message()), HasSubstr("ranks 2 and 3 share GPU 7"));

  const auto apart = ChooseDevicePath({On("a", "0", DeviceCollective::kPeerMemory), On("b", "0")});
  EXPECT_TRUE(absl::IsFailedPrecondition(apart.status()));
  EXPECT_THAT(std::string(apart.status().message()), HasSubstr("ranks 0 and 1"));
}

TEST(RendezvousTest, EveryRankGetsAllValuesInOrder) {
  LocalKeyStore keys;
  RunInThreads(4, [&](int rank) {
    Rendezvous rendezvous(keys, "test", rank, 4, kTimeout);
    const auto values =
        rendezvous.Exchange("letters", std::string(1, static_cast<char>(250 + rank)));
    ASSERT_TRUE(values.ok()) << values.status();
    EXPECT_THAT(*values, ElementsAre("\xfa", "\xfb", "\xfc", "\xfd"));
  });
}

TEST(RendezvousTest, RootTellsAll) {
  LocalKeyStore keys;
  const std::string id("\0id\xff", 4);
  RunInThreads(2, [&](int rank) {
    Rendezvous rendezvous(keys, "test", rank, 2, kTimeout);
    const auto told = rendezvous.FromRoot("id", rank == 0 ? id : "mine");
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_EQ(*told, id);
  });
}

TEST(RendezvousTest, WhatFailsOnOneRankFailsOnAll) {
  LocalKeyStore keys;
  RunInThreads(4, [&](int rank) {
    Rendezvous rendezvous(keys, "test", rank, 4, kTimeout);
    EXPECT_TRUE(rendezvous.Agree("first", absl::OkStatus()).ok());
    const absl::Status own =
        rank == 2 ? absl::ResourceExhaustedError("no memory") : absl::OkStatus();
    const absl::Status agreed = rendezvous.Agree("second", own);
    if (rank == 2) {
      EXPECT_EQ(agreed, own);
    } else {
      EXPECT_EQ(agreed, absl::FailedPreconditionError("rank 2: no memory"));
    }
  });
}

TEST(RendezvousTest, ARankThatDoesNotComeIsADeadline) {
  LocalKeyStore keys;
  Rendezvous rendezvous(keys, "test", 0, 2, absl::Milliseconds(20));
  EXPECT_TRUE(absl::IsDeadlineExceeded(rendezvous.Exchange("value", "").status()));
  EXPECT_TRUE(absl::IsDeadlineExceeded(rendezvous.Agree("done", absl::OkStatus())));
}

}  // namespace
}  // namespace marcoro
