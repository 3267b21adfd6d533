// Ranks as processes that die and hang. No test here may start a thread in the process that forks.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "tests/worker/collective/ranks.h"

namespace marcoro {
namespace {

std::set<std::string> SharedMemoryFiles() {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    // Other programs of this machine may come and go.
    if (entry.path().string().find("marcoro") != std::string::npos) names.insert(entry.path());
  }
  return names;
}

// Reports what went wrong in a forked rank and returns its exit code.
int Fail(int rank, const std::string& what) {
  std::fprintf(stderr, "rank %d: %s\n", rank, what.c_str());
  return 1;
}

bool EndedWell(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }

class ProcessesTest : public testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  std::string transport() const { return std::get<0>(GetParam()); }
  int ranks() const { return std::get<1>(GetParam()); }

  // What rank `victim` leaves behind when it ends, or hangs, inside a running group.
  void ExpectFromSurvivors(int victim, const std::function<void(KeyStore&)>& end,
                           absl::Duration timeout, absl::Duration at_least, absl::Duration at_most,
                           absl::StatusCode code) {
    TemporaryFolder folder;
    const std::vector<int> statuses = RunInProcesses(ranks(), [&](int rank) {
      FolderKeyStore keys(folder.path());
      auto communicator = Connect(transport(), rank, ranks(), keys, timeout);
      if (!communicator.ok()) return Fail(rank, communicator.status().ToString());
      std::vector<float> data(4096, 1);
      absl::Status status = (*communicator)->AllReduceTree(absl::MakeSpan(data));
      if (!status.ok()) return Fail(rank, status.ToString());
      if (rank == victim) end(keys);
      const absl::Time start = absl::Now();
      status = (*communicator)->AllReduceTree(absl::MakeSpan(data));
      const absl::Duration took = absl::Now() - start;
      if (rank == victim) return 0;  // it hung until the others gave up
      if (!keys.Set(absl::StrCat("gave up/", rank), "").ok()) return Fail(rank, "no key");
      // A survivor that gives up ends its process; the next one sees either reason.
      const bool expected =
          status.code() == code || (ranks() > 2 && status.code() == absl::StatusCode::kUnavailable);
      if (!expected || took < at_least || took > at_most) {
        return Fail(rank, absl::StrCat(status.ToString(), " after ", absl::FormatDuration(took)));
      }
      return 0;
    });
    for (int rank = 0; rank < ranks(); ++rank) {
      if (rank == victim) continue;
      EXPECT_TRUE(EndedWell(statuses[static_cast<size_t>(rank)])) << rank;
    }
  }
};

TEST_P(ProcessesTest, EveryRankHoldsTheBitsOfTheTree) {
  TemporaryFolder folder;
  const size_t sizes[] = {1, 4096, 100003, 1 << 20};
  const std::vector<int> statuses = RunInProcesses(ranks(), [&](int rank) {
    FolderKeyStore keys(folder.path());
    auto communicator = Connect(transport(), rank, ranks(), keys, absl::Seconds(60));
    if (!communicator.ok()) return Fail(rank, communicator.status().ToString());
    for (const size_t size : sizes) {
      std::vector<float> data = PartialSums(rank, size);
      const absl::Status status = (*communicator)->AllReduceTree(absl::MakeSpan(data));
      if (!status.ok()) return Fail(rank, status.ToString());
      const int64_t difference = FirstDifference(data, ExpectedTreeSum(0, ranks(), size));
      if (difference >= 0) return Fail(rank, absl::StrCat("differs at ", difference));
    }
    return 0;
  });
  for (const int status : statuses) EXPECT_TRUE(EndedWell(status));
}

TEST_P(ProcessesTest, AKilledPeerIsUnavailableLongBeforeTheTimeout) {
  const std::set<std::string> before = SharedMemoryFiles();
  ExpectFromSurvivors(
      ranks() - 1, [](KeyStore&) { raise(SIGKILL); }, /*timeout=*/absl::Seconds(100),
      absl::ZeroDuration(), absl::Seconds(20), absl::StatusCode::kUnavailable);
  EXPECT_EQ(SharedMemoryFiles(), before);
}

TEST_P(ProcessesTest, AKilledRankZeroIsUnavailableLongBeforeTheTimeout) {
  ExpectFromSurvivors(
      0, [](KeyStore&) { raise(SIGKILL); }, absl::Seconds(100), absl::ZeroDuration(),
      absl::Seconds(20), absl::StatusCode::kUnavailable);
}

TEST_P(ProcessesTest, AHungPeerIsADeadlineAfterTheTimeout) {
  const absl::Duration timeout = absl::Seconds(2);
  const int victim = ranks() - 1;
  // Alive, with its connections and locks, but elsewhere until the others have given up.
  const auto hang = [&](KeyStore& keys) {
    for (int rank = 0; rank < victim; ++rank) {
      (void)keys.Get(absl::StrCat("gave up/", rank), absl::Seconds(60));
    }
  };
  ExpectFromSurvivors(victim, hang, timeout, ranks() > 2 ? absl::ZeroDuration() : timeout,
                      absl::Seconds(20), absl::StatusCode::kDeadlineExceeded);
}

TEST_P(ProcessesTest, ARankKilledWhileConnectingLeavesNothingBehind) {
  const std::set<std::string> before = SharedMemoryFiles();
  TemporaryFolder folder;
  const std::vector<int> statuses = RunInProcesses(2, [&](int rank) {
    FolderKeyStore keys(folder.path());
    if (rank == 1) {
      // The keys of rank 0 show that it has begun.
      const char* key = transport() == "gloo" ? "gloo/0" : "shared_memory/segment";
      if (!keys.Get(key, absl::Seconds(60)).ok()) return Fail(rank, "rank 0 never began");
      raise(SIGKILL);
    }
    alarm(2);  // nobody will come
    (void)Connect(transport(), rank, 2, keys, absl::Seconds(60));
    return 0;
  });
  EXPECT_TRUE(WIFSIGNALED(statuses[0]));
  EXPECT_TRUE(WIFSIGNALED(statuses[1]));
  EXPECT_EQ(SharedMemoryFiles(), before);
}

INSTANTIATE_TEST_SUITE_P(Transports, ProcessesTest,
                         testing::Combine(testing::Values("gloo", "shared-memory"),
                                          testing::Values(2, 4)),
                         [](const testing::TestParamInfo<std::tuple<std::string, int>>& test) {
                           return absl::StrReplaceAll(
                               absl::StrCat(std::get<0>(test.param), "_", std::get<1>(test.param)),
                               {{"-", "_"}});
                         });

}  // namespace
}  // namespace marcoro
