// Groups of real processes whose members die. No test here may start a thread, or gRPC, in the
// process that forks.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/worker/collective/ranks.h"
#include "worker/group/group.h"
#include "worker/group/group_service.h"
#include "worker/group/host_identity.h"
#include "worker/group/step_broadcast.h"

namespace marcoro {
namespace {

using Kind = StepBroadcast::Kind;

// A rank in its own process: the server, if it is rank 0, and its group.
struct Member {
  std::unique_ptr<GroupService> service;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<Group> group;

  ~Member() {
    group.reset();
    if (server != nullptr) server->Shutdown(std::chrono::system_clock::now());
  }
};

absl::Status Join(int rank, int ranks, Transport transport, const std::string& folder,
                  Member* member) {
  FolderKeyStore ports(folder);
  GroupOptions options;
  options.rank = rank;
  options.world_size = ranks;
  options.fingerprint = "numbers";
  options.host = HostIdentity();
  options.transport = transport;
  options.join_timeout = absl::Seconds(60);
  options.collective_timeout = absl::Seconds(100);
  if (rank == 0) {
    member->service.reset(new GroupService({ranks, "numbers"}));
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(member->service->service());
    member->server = builder.BuildAndStart();
    if (absl::Status status = ports.Set("port", absl::StrCat(port)); !status.ok()) return status;
  } else {
    auto port = ports.Get("port", absl::Seconds(60));
    if (!port.ok()) return port.status();
    options.root_address = absl::StrCat("127.0.0.1:", *port);
  }
  auto group = Group::Join(options, member->service.get());
  if (!group.ok()) return group.status();
  member->group = *std::move(group);
  return absl::OkStatus();
}

int Fail(int rank, const absl::Status& status) {
  std::fprintf(stderr, "rank %d: %s\n", rank, status.ToString().c_str());
  return 1;
}

bool EndedWell(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }

class GroupProcessesTest : public testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  Transport transport() const { return std::get<0>(GetParam()); }
  int ranks() const { return std::get<1>(GetParam()); }

  // All ranks exchange one heartbeat, then `victim` is killed and every other rank, waiting as in
  // an idle group, must find out.
  void ExpectNoticed(int victim) {
    TemporaryFolder folder;
    const std::vector<int> statuses = RunInProcesses(ranks(), [&](int rank) {
      Member member;
      if (absl::Status status = Join(rank, ranks(), transport(), folder.path(), &member);
          !status.ok()) {
        return Fail(rank, status);
      }
      StepBroadcast broadcast(&member.group->control());
      StepPlan plan;
      absl::Status status =
          rank == 0 ? broadcast.SendHeartbeat() : broadcast.Receive(&plan).status();
      if (!status.ok()) return Fail(rank, status);
      if (rank == victim) raise(SIGKILL);
      const absl::Time start = absl::Now();
      status = rank == 0 ? broadcast.SendHeartbeat() : broadcast.Receive(&plan).status();
      // A peer that got the last heartbeat before the victim died learns it from the next.
      if (status.ok() && rank != 0) status = broadcast.Receive(&plan).status();
      if (!absl::IsUnavailable(status) || absl::Now() - start > absl::Seconds(30)) {
        return Fail(rank, status);
      }
      return 0;
    });
    for (int rank = 0; rank < ranks(); ++rank) {
      const int status = statuses[static_cast<size_t>(rank)];
      if (rank == victim) {
        EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
      } else {
        EXPECT_TRUE(EndedWell(status)) << rank;
      }
    }
  }
};

TEST_P(GroupProcessesTest, RunsStepsAndShutsDown) {
  TemporaryFolder folder;
  const std::vector<int> statuses = RunInProcesses(ranks(), [&](int rank) {
    Member member;
    if (absl::Status status = Join(rank, ranks(), transport(), folder.path(), &member);
        !status.ok()) {
      return Fail(rank, status);
    }
    StepBroadcast broadcast(&member.group->control());
    StepPlan plan;
    for (int step = 0; step < 20; ++step) {
      plan.Clear();
      plan.blocks_to_zero = {step};
      if (rank == 0) {
        if (!broadcast.SendStep(plan).ok()) return 2;
      } else {
        auto kind = broadcast.Receive(&plan);
        if (!kind.ok() || *kind != Kind::kStep || plan.blocks_to_zero[0] != step) return 3;
      }
      std::vector<float> data = PartialSums(rank, 5000);
      if (!member.group->data().AllReduceTree(absl::MakeSpan(data)).ok()) return 4;
      if (FirstDifference(data, ExpectedTreeSum(0, ranks(), 5000)) >= 0) return 5;
    }
    if (rank == 0) return broadcast.SendShutdown().ok() ? 0 : 6;
    auto kind = broadcast.Receive(&plan);
    return kind.ok() && *kind == Kind::kShutdown ? 0 : 7;
  });
  for (const int status : statuses) EXPECT_TRUE(EndedWell(status)) << status;
}

TEST_P(GroupProcessesTest, PeersNoticeThatRankZeroDied) { ExpectNoticed(0); }
TEST_P(GroupProcessesTest, TheOthersNoticeThatAPeerDied) { ExpectNoticed(ranks() - 1); }

INSTANTIATE_TEST_SUITE_P(
    Transports, GroupProcessesTest,
    testing::Combine(testing::Values(Transport::kSharedMemory, Transport::kGloo),
                     testing::Values(2, 4)),
    [](const testing::TestParamInfo<std::tuple<Transport, int>>& test) {
      return absl::StrCat(std::get<0>(test.param) == Transport::kGloo ? "gloo_" : "shared_memory_",
                          std::get<1>(test.param));
    });

}  // namespace
}  // namespace marcoro
