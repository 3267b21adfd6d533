// What every transport owes its callers, with ranks as threads.
#include "worker/collective/communicator.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "tests/worker/collective/ranks.h"
#include "worker/collective/gloo.h"
#include "worker/collective/shared_memory.h"

namespace marcoro {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);

class CommunicatorTest : public testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  std::string transport() const { return std::get<0>(GetParam()); }
  int ranks() const { return std::get<1>(GetParam()); }

  // Connects all ranks and runs the body on each.
  void OnEachRank(const std::function<void(Communicator&)>& body,
                  absl::Duration timeout = kTimeout) {
    LocalKeyStore keys;
    RunInThreads(ranks(), [&](int rank) {
      auto communicator = Connect(transport(), rank, ranks(), keys, timeout);
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      EXPECT_EQ((*communicator)->rank(), rank);
      EXPECT_EQ((*communicator)->size(), ranks());
      body(**communicator);
    });
  }
};

// Around the sizes at which something changes: vector blocks (16), slices (32 KB), slots (256 KB),
// Gloo's pieces (4 MB).
const size_t kSizes[] = {0,    1,     7,     16,     4095,    4096,         8192,
                         8193, 65536, 65537, 200001, 1 << 20, (1 << 20) + 3};

TEST_P(CommunicatorTest, AllReduceGivesEveryRankTheBitsOfTheTree) {
  std::vector<std::vector<float>> expected;
  for (const size_t count : kSizes) expected.push_back(ExpectedTreeSum(0, ranks(), count));
  OnEachRank([&](Communicator& communicator) {
    for (size_t i = 0; i < std::size(kSizes); ++i) {
      std::vector<float> data = PartialSums(communicator.rank(), kSizes[i]);
      const absl::Status status = communicator.AllReduceTree(absl::MakeSpan(data));
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(FirstDifference(data, expected[i]), -1)
          << "size " << kSizes[i] << " on rank " << communicator.rank();
    }
  });
}

TEST_P(CommunicatorTest, GatherPutsTheRanksSideBySideOnRankZeroAndNothingElsewhere) {
  OnEachRank([&](Communicator& communicator) {
    for (const size_t count : kSizes) {
      const std::vector<float> send = PartialSums(communicator.rank(), count);
      std::vector<float> receive;
      if (communicator.rank() == 0) receive.resize(count * static_cast<size_t>(ranks()));
      const absl::Status status = communicator.GatherToRoot(send, absl::MakeSpan(receive));
      ASSERT_TRUE(status.ok()) << status;
      if (communicator.rank() != 0) continue;
      std::vector<float> expected;
      for (int rank = 0; rank < ranks(); ++rank) {
        const std::vector<float> part = PartialSums(rank, count);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      EXPECT_EQ(FirstDifference(receive, expected), -1) << "size " << count;
    }
  });
}

TEST_P(CommunicatorTest, GatherLeavesAnUnusedReceiveBufferAlone) {
  OnEachRank([&](Communicator& communicator) {
    if (communicator.rank() == 0) {
      const std::vector<float> send = {1, 2};
      std::vector<float> receive(2 * static_cast<size_t>(ranks()));
      ASSERT_TRUE(communicator.GatherToRoot(send, absl::MakeSpan(receive)).ok());
    } else {
      const std::vector<float> send = {1, 2};
      std::vector<float> receive = {-5};
      ASSERT_TRUE(communicator.GatherToRoot(send, absl::MakeSpan(receive)).ok());
      EXPECT_EQ(receive, std::vector<float>({-5}));
    }
  });
}

std::string Message(size_t size) {
  std::string message(size, '\0');
  for (size_t i = 0; i < size; ++i) message[i] = static_cast<char>(i * 31 + size);
  return message;
}

TEST_P(CommunicatorTest, BroadcastReplacesTheMessageByThatOfRankZero) {
  // Around the first frame of Gloo (4096 with 8 for the length) and the slot of shared memory (256
  // KB with 8 for the length).
  const size_t sizes[] = {0,      1,      4087,   4088,   4089,   4096,      100000,
                          262135, 262136, 262137, 262144, 524288, 3'000'000, 5};
  OnEachRank([&](Communicator& communicator) {
    for (const size_t size : sizes) {
      std::string message = communicator.rank() == 0 ? Message(size) : "something else";
      const absl::Status status = communicator.BroadcastFromRoot(&message);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(message == Message(size)) << "size " << size << " on " << communicator.rank();
    }
  });
}

TEST_P(CommunicatorTest, IdsBecomeThoseOfRankZero) {
  OnEachRank([&](Communicator& communicator) {
    for (const size_t count : {0, 1, 255, 5000}) {
      std::vector<int32_t> expected(count);
      for (size_t i = 0; i < count; ++i) expected[i] = static_cast<int32_t>(i * 31);
      std::vector<int32_t> ids(count, -1);
      if (communicator.rank() == 0) ids = expected;
      const absl::Status status = communicator.BroadcastIds(absl::MakeSpan(ids));
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(ids, expected) << count << " ids on rank " << communicator.rank();
    }
  });
}

TEST(Communicator, ADifferentNumberOfIdsIsAnError) {
  LocalKeyStore keys;
  RunInThreads(2, [&](int rank) {
    auto communicator = Connect("shared-memory", rank, 2, keys, kTimeout);
    ASSERT_TRUE(communicator.ok());
    std::vector<int32_t> ids(rank == 0 ? 3 : 4);
    EXPECT_EQ((*communicator)->BroadcastIds(absl::MakeSpan(ids)).code(),
              rank == 0 ? absl::StatusCode::kOk : absl::StatusCode::kInternal);
  });
}

// As an engine uses it: a plan, many sums, the logits; thousands of them, so that a race between
// slots would show.
TEST_P(CommunicatorTest, MixedOperationsInAnyOrderStayApart) {
  const int rounds = ranks() > 2 ? 60 : 300;
  const std::vector<float> expected = ExpectedTreeSum(0, ranks(), 9000);
  OnEachRank([&](Communicator& communicator) {
    for (int round = 0; round < rounds; ++round) {
      std::string message = communicator.rank() == 0 ? absl::StrCat("round ", round) : "";
      ASSERT_TRUE(communicator.BroadcastFromRoot(&message).ok());
      ASSERT_EQ(message, absl::StrCat("round ", round));
      const size_t count = static_cast<size_t>(round % 3 == 0 ? 9000 : 1 + round * 7 % 600);
      for (int i = 0; i < 4; ++i) {
        std::vector<float> data = PartialSums(communicator.rank(), count);
        ASSERT_TRUE(communicator.AllReduceTree(absl::MakeSpan(data)).ok());
        ASSERT_EQ(FirstDifference(data, {expected.begin(), expected.begin() + data.size()}), -1);
      }
      const float own[] = {static_cast<float>(communicator.rank() + round)};
      std::vector<float> all(communicator.rank() == 0 ? static_cast<size_t>(ranks()) : 0);
      ASSERT_TRUE(communicator.GatherToRoot(own, absl::MakeSpan(all)).ok());
      for (size_t rank = 0; rank < all.size(); ++rank) {
        ASSERT_EQ(all[rank], static_cast<float>(round) + static_cast<float>(rank));
      }
    }
  });
}

// Not Gloo's: that knows only when it waits.
TEST(SharedMemoryCommunicator, SaysWhichPeerIsGoneWithoutWaitingForIt) {
  LocalKeyStore keys;
  std::unique_ptr<Communicator> ranks[4];
  RunInThreads(4, [&](int rank) {
    auto communicator = Connect("shared-memory", rank, 4, keys, kTimeout);
    ASSERT_TRUE(communicator.ok()) << communicator.status();
    ranks[rank] = *std::move(communicator);
  });
  for (const auto& rank : ranks) EXPECT_EQ(rank->CheckPeers(), absl::OkStatus());
  ranks[2].reset();
  for (const int rank : {0, 1, 3}) {
    EXPECT_EQ(ranks[rank]->CheckPeers(), absl::UnavailableError("rank 2 is gone"));
  }
}

std::string TestName(const testing::TestParamInfo<std::tuple<std::string, int>>& test) {
  return absl::StrReplaceAll(absl::StrCat(std::get<0>(test.param), "_", std::get<1>(test.param)),
                             {{"-", "_"}});
}

// A lone rank's operations do nothing; what the host carries, no device repeats by itself.
TEST_P(CommunicatorTest, OnlyALoneRankIsRepeatableOnTheHost) {
  OnEachRank([&](Communicator& communicator) {
    EXPECT_EQ(communicator.repeatable(), ranks() == 1);
    EXPECT_TRUE(communicator.NoteRepeated().ok());
  });
}

// Whoever is connected first may leave at once: the others are connected then, too.
TEST_P(CommunicatorTest, RanksThatLeaveAtOnceLeaveNoneUnconnected) {
  for (int round = 0; round < 20; ++round) {
    OnEachRank([](Communicator&) {});
  }
}

INSTANTIATE_TEST_SUITE_P(Single, CommunicatorTest, testing::Values(std::make_tuple("single", 1)),
                         TestName);
INSTANTIATE_TEST_SUITE_P(Groups, CommunicatorTest,
                         testing::Combine(testing::Values("gloo", "shared-memory"),
                                          testing::Values(1, 2, 4, 8)),
                         TestName);

class BrokenGroupTest : public testing::TestWithParam<std::string> {};

TEST_P(BrokenGroupTest, APeerThatDoesNotComeIsADeadlineAndThenNothingWorksAnyMore) {
  LocalKeyStore keys;
  std::unique_ptr<Communicator> ranks[2];
  RunInThreads(2, [&](int rank) {
    auto communicator = Connect(GetParam(), rank, 2, keys, absl::Milliseconds(200));
    ASSERT_TRUE(communicator.ok()) << communicator.status();
    ranks[rank] = *std::move(communicator);
  });
  std::vector<float> data(10);
  const absl::Time start = absl::Now();
  EXPECT_EQ(ranks[0]->AllReduceTree(absl::MakeSpan(data)).code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(200));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  std::string message = "message";
  EXPECT_EQ(ranks[0]->BroadcastFromRoot(&message).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ranks[0]->GatherToRoot(absl::MakeSpan(data).subspan(5), absl::MakeSpan(data)).code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_P(BrokenGroupTest, APeerThatLeavesIsUnavailable) {
  LocalKeyStore keys;
  RunInThreads(4, [&](int rank) {
    auto communicator = Connect(GetParam(), rank, 4, keys, kTimeout);
    ASSERT_TRUE(communicator.ok()) << communicator.status();
    std::vector<float> data(10);
    ASSERT_TRUE((*communicator)->AllReduceTree(absl::MakeSpan(data)).ok());
    if (rank == 2) return;
    const absl::Time start = absl::Now();
    EXPECT_EQ((*communicator)->AllReduceTree(absl::MakeSpan(data)).code(),
              absl::StatusCode::kUnavailable);
    EXPECT_LT(absl::Now() - start, absl::Seconds(20));
  });
}

TEST_P(BrokenGroupTest, ARankThatNeverConnectsIsADeadlineForTheOthers) {
  LocalKeyStore keys;
  absl::Status status;
  if (GetParam() == "gloo") {
    GlooOptions options;
    options.size = 2;
    options.connect_timeout = absl::Milliseconds(200);
    status = MakeGlooCommunicator(options, keys).status();
  } else {
    SharedMemoryOptions options;
    options.size = 2;
    options.connect_timeout = absl::Milliseconds(200);
    status = MakeSharedMemoryCommunicator(options, keys).status();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
}

INSTANTIATE_TEST_SUITE_P(Transports, BrokenGroupTest, testing::Values("gloo", "shared_memory"));

TEST(GlooCommunicator, NamesTheInterfaceThatDoesNotExist) {
  LocalKeyStore keys;
  GlooOptions options;
  options.interface = "no-such-interface.invalid";
  const absl::Status status = MakeGlooCommunicator(options, keys).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("no-such-interface.invalid"), absl::string_view::npos) << status;
  // Gloo must not be asked for a name that nobody knows: it takes the failed search for a result.
  EXPECT_EQ(status.message().find("enforce fail"), absl::string_view::npos) << status;
}

TEST(GlooCommunicator, ListensOnAnInterfaceByName) {
  LocalKeyStore keys;
  RunInThreads(2, [&](int rank) {
    GlooOptions options;
    options.rank = rank;
    options.size = 2;
    options.interface = "lo";
    auto communicator = MakeGlooCommunicator(options, keys);
    ASSERT_TRUE(communicator.ok()) << communicator.status();
    float sum[] = {static_cast<float>(rank + 1)};
    ASSERT_TRUE((*communicator)->AllReduceTree(sum).ok());
    EXPECT_EQ(sum[0], 3);
  });
}

TEST(SharedMemoryCommunicator, RanksInDifferentOperationsFailInsteadOfMixingThem) {
  LocalKeyStore keys;
  RunInThreads(2, [&](int rank) {
    auto communicator = Connect("shared-memory", rank, 2, keys, kTimeout);
    ASSERT_TRUE(communicator.ok());
    std::vector<float> data(static_cast<size_t>(rank + 5));
    EXPECT_EQ((*communicator)->AllReduceTree(absl::MakeSpan(data)).code(),
              absl::StatusCode::kInternal);
  });
}

TEST(SharedMemoryCommunicator, ARankThatCannotMapFailsTheWholeGroupAlike) {
  LocalKeyStore keys;
  // Rank 1 finds a handle that leads nowhere, as in another namespace of processes.
  ASSERT_TRUE(keys.Set("shared_memory/segment", "999999999 3 12345").ok());
  absl::Status statuses[4];
  RunInThreads(3, [&](int index) {
    const int rank = index + 1;
    statuses[rank] = Connect("shared-memory", rank, 4, keys, kTimeout).status();
  });
  for (int rank = 1; rank < 4; ++rank) {
    EXPECT_EQ(statuses[rank].code(), absl::StatusCode::kFailedPrecondition) << statuses[rank];
  }
}

TEST(SharedMemoryCommunicator, DoesNotTakeAnotherFileForTheSegment) {
  LocalKeyStore keys;
  // Descriptor 1 of this very process: there, but not the segment.
  ASSERT_TRUE(keys.Set("shared_memory/segment", absl::StrCat(getpid(), " 1 12345")).ok());
  EXPECT_EQ(Connect("shared-memory", 1, 2, keys, kTimeout).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(SharedMemoryCommunicator, RankZerosFailureReachesItsPeers) {
  LocalKeyStore keys;
  ASSERT_TRUE(keys.Set("shared_memory/segment", "failed: no memory").ok());
  const absl::Status status = Connect("shared-memory", 1, 2, keys, kTimeout).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("no memory"), absl::string_view::npos) << status;
}

}  // namespace
}  // namespace marcoro
