// Whole groups that come together through real sockets, with ranks as threads.
#include "worker/group/group.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "kernels/check.h"
#include "marcoro/worker/v1/group.grpc.pb.h"
#include "marcoro/worker/v1/worker.grpc.pb.h"
#include "tests/worker/collective/ranks.h"
#include "worker/collective/gloo.h"
#include "worker/group/group_client.h"
#include "worker/group/group_service.h"
#include "worker/group/host_identity.h"
#include "worker/group/step_broadcast.h"

namespace marcoro {
namespace {

using testing::HasSubstr;

// Rank 0's gRPC server with a GroupService.
class Server {
 public:
  explicit Server(int world_size, const std::string& fingerprint = "numbers",
                  const std::string& address = "127.0.0.1:0")
      : service_({world_size, fingerprint}) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.service());
    server_ = builder.BuildAndStart();
    MARCORO_CHECK(server_ != nullptr);
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~Server() { server_->Shutdown(std::chrono::system_clock::now()); }

  GroupService& service() { return service_; }
  const std::string& address() const { return address_; }

 private:
  GroupService service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// A socket that listens on loopback, on a port that can be listened on again at once and that no
// outgoing connection is given (those begin at 32768).
int ListenOnUnusedPort(uint16_t* port) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::random_device random;
  for (int attempt = 0; attempt < 100; ++attempt) {
    *port = static_cast<uint16_t>(20000 + random() % 10000);
    address.sin_port = htons(*port);
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) break;
  }
  MARCORO_CHECK(listen(listener, 8) == 0);
  return listener;
}

GroupOptions Options(const Server& server, int rank, int world_size) {
  GroupOptions options;
  options.rank = rank;
  options.world_size = world_size;
  options.root_address = server.address();
  options.fingerprint = "numbers";
  options.host = HostIdentity();
  options.join_timeout = absl::Seconds(60);
  options.collective_timeout = absl::Seconds(60);
  return options;
}

GroupClientOptions ClientOptions(const Server& server, int rank, int world_size) {
  GroupClientOptions options;
  options.root_address = server.address();
  options.rank = rank;
  options.world_size = world_size;
  options.fingerprint = "numbers";
  options.host = HostIdentity();
  return options;
}

// A step, a sum over it, a shutdown.
void ExpectWorks(Group& group) {
  StepBroadcast broadcast(&group.control());
  StepPlan plan;
  if (group.rank() == 0) {
    plan.blocks_to_zero = {7};
    ASSERT_TRUE(broadcast.SendStep(plan).ok());
  } else {
    ASSERT_EQ(*broadcast.Receive(&plan), StepBroadcast::Kind::kStep);
    EXPECT_EQ(plan.blocks_to_zero, std::vector<BlockId>({7}));
  }
  std::vector<float> data = PartialSums(group.rank(), 1000);
  ASSERT_TRUE(group.data().AllReduceTree(absl::MakeSpan(data)).ok());
  EXPECT_EQ(FirstDifference(data, ExpectedTreeSum(0, group.size(), 1000)), -1);
  if (group.rank() == 0) {
    ASSERT_TRUE(broadcast.SendShutdown().ok());
  } else {
    ASSERT_EQ(*broadcast.Receive(&plan), StepBroadcast::Kind::kShutdown);
  }
}

class JoiningGroupTest : public testing::TestWithParam<std::tuple<int, Transport>> {};

TEST_P(JoiningGroupTest, AllRanksConnectAndWork) {
  const int ranks = std::get<0>(GetParam());
  const Transport transport = std::get<1>(GetParam());
  Server server(ranks);
  RunInThreads(ranks, [&](int rank) {
    GroupOptions options = Options(server, rank, ranks);
    options.transport = transport;
    auto group = Group::Join(options, rank == 0 ? &server.service() : nullptr);
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ((*group)->rank(), rank);
    EXPECT_EQ((*group)->size(), ranks);
    EXPECT_EQ((*group)->epoch(), server.service().epoch());
    EXPECT_EQ((*group)->transport(),
              transport == Transport::kGloo ? Transport::kGloo : Transport::kSharedMemory);
    ExpectWorks(**group);
  });
}

std::string TestName(const testing::TestParamInfo<std::tuple<int, Transport>>& test) {
  const char* const names[] = {"auto", "shared_memory", "gloo"};
  return absl::StrCat(names[static_cast<int>(std::get<1>(test.param))], "_",
                      std::get<0>(test.param));
}

INSTANTIATE_TEST_SUITE_P(
    Ranks, JoiningGroupTest,
    testing::Combine(testing::Values(2, 4, 8),
                     testing::Values(Transport::kAuto, Transport::kSharedMemory, Transport::kGloo)),
    TestName);

TEST(Group, OfOneNeedsNobody) {
  GroupOptions options;
  auto group = Group::Join(options, nullptr);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->size(), 1);
  EXPECT_EQ((*group)->transport(), Transport::kAuto);
  std::vector<float> data = {1, 2, 3};
  EXPECT_TRUE((*group)->data().AllReduceTree(absl::MakeSpan(data)).ok());
  EXPECT_EQ(data, std::vector<float>({1, 2, 3}));
}

TEST(Group, UsesGlooWhereARankIsElsewhereOrWantsGloo) {
  for (const bool elsewhere : {true, false}) {
    Server server(2);
    RunInThreads(2, [&](int rank) {
      GroupOptions options = Options(server, rank, 2);
      if (rank == 1 && elsewhere) options.host = "another host";
      if (rank == 1 && !elsewhere) options.transport = Transport::kGloo;
      auto group = Group::Join(options, rank == 0 ? &server.service() : nullptr);
      ASSERT_TRUE(group.ok()) << group.status();
      EXPECT_EQ((*group)->transport(), Transport::kGloo);
      ExpectWorks(**group);
    });
  }
}

// The two halves of a fallback: one side is a Group, the other plays the rank that cannot map by
// hand.
absl::StatusOr<std::unique_ptr<Communicator>> ConnectGlooByHand(const char* prefix, int rank,
                                                                KeyStore& keys) {
  GlooOptions options;
  options.rank = rank;
  options.size = 2;
  options.key_prefix = prefix;
  return MakeGlooCommunicator(options, keys);
}

TEST(Group, RankZeroFallsBackToGlooWhenAPeerCannotMap) {
  Server server(2);
  absl::Notification joined;  // until then the peer's ends must not close
  RunInThreads(2, [&](int rank) {
    if (rank == 0) {
      auto group = Group::Join(Options(server, 0, 2), &server.service());
      joined.Notify();
      ASSERT_TRUE(group.ok()) << group.status();
      EXPECT_EQ((*group)->transport(), Transport::kGloo);
      return;
    }
    auto client = GroupClient::Join(ClientOptions(server, 1, 2), absl::Seconds(60));
    ASSERT_TRUE(client.ok()) << client.status();
    ASSERT_TRUE((*client)->Set("data/shared-memory/mapped/1", "failed: not permitted").ok());
    const auto data = ConnectGlooByHand("data/gloo", 1, **client);
    EXPECT_TRUE(data.ok()) << data.status();
    const auto control = ConnectGlooByHand("control/gloo", 1, **client);
    EXPECT_TRUE(control.ok()) << control.status();
    EXPECT_TRUE(joined.WaitForNotificationWithTimeout(absl::Minutes(1)));
  });
}

TEST(Group, PeersFallBackToGlooWhenRankZeroHasNoSegment) {
  Server server(2);
  absl::Notification joined;
  KeyStore& keys = server.service().keys();
  ASSERT_TRUE(keys.Set("transport", "auto").ok());
  ASSERT_TRUE(keys.Set("data/shared-memory/segment", "failed: no memory").ok());
  RunInThreads(2, [&](int rank) {
    if (rank == 1) {
      auto group = Group::Join(Options(server, 1, 2), nullptr);
      joined.Notify();
      ASSERT_TRUE(group.ok()) << group.status();
      EXPECT_EQ((*group)->transport(), Transport::kGloo);
      return;
    }
    const auto data = ConnectGlooByHand("data/gloo", 0, keys);
    EXPECT_TRUE(data.ok()) << data.status();
    const auto control = ConnectGlooByHand("control/gloo", 0, keys);
    EXPECT_TRUE(control.ok()) << control.status();
    EXPECT_TRUE(joined.WaitForNotificationWithTimeout(absl::Minutes(1)));
  });
}

TEST(Group, DoesNotFallBackWhereSharedMemoryWasDemanded) {
  Server server(2);
  KeyStore& keys = server.service().keys();
  ASSERT_TRUE(keys.Set("transport", "shared-memory").ok());
  ASSERT_TRUE(keys.Set("data/shared-memory/segment", "failed: no memory").ok());
  const absl::Status status = Group::Join(Options(server, 1, 2), nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no memory"));
}

TEST(Group, RefusesImpossibleOptions) {
  GroupOptions options;
  options.world_size = 3;
  EXPECT_THAT(std::string(Group::Join(options, nullptr).status().message()), HasSubstr("not 3"));
  options.world_size = 2;
  options.rank = 2;
  EXPECT_THAT(std::string(Group::Join(options, nullptr).status().message()), HasSubstr("rank 2"));
  options.rank = 1;
  EXPECT_THAT(std::string(Group::Join(options, nullptr).status().message()),
              HasSubstr("address of rank 0"));
  options.rank = 0;
  EXPECT_EQ(Group::Join(options, nullptr).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Group, ParsesTheNamesOfTransports) {
  EXPECT_EQ(*ParseTransport("auto"), Transport::kAuto);
  EXPECT_EQ(*ParseTransport("shared-memory"), Transport::kSharedMemory);
  EXPECT_EQ(*ParseTransport("gloo"), Transport::kGloo);
  EXPECT_THAT(std::string(ParseTransport("nccl").status().message()), HasSubstr("nccl"));
}

TEST(JoiningLate, RankZeroNamesTheRanksThatAreMissing) {
  Server server(4);
  ASSERT_TRUE(GroupClient::Join(ClientOptions(server, 2, 4), absl::Seconds(60)).ok());
  absl::Status status = server.service().WaitForPeers(absl::Milliseconds(1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("ranks 1, 3 did not join"));
  // They may still come.
  ASSERT_TRUE(GroupClient::Join(ClientOptions(server, 1, 4), absl::Seconds(60)).ok());
  ASSERT_TRUE(GroupClient::Join(ClientOptions(server, 3, 4), absl::Seconds(60)).ok());
  EXPECT_EQ(server.service().WaitForPeers(absl::Seconds(60))->size(), 3u);
}

TEST(JoiningLate, PeersWaitForARankZeroThatStartsLater) {
  // A listener that drops the first connection shows that the peer tries before rank 0 is there.
  uint16_t port = 0;
  const int listener = ListenOnUnusedPort(&port);
  const std::string root = absl::StrCat("127.0.0.1:", port);

  GroupClientOptions options;
  options.root_address = root;
  options.fingerprint = "numbers";
  absl::Status status = absl::UnknownError("not yet");
  std::thread joining([&] { status = GroupClient::Join(options, absl::Seconds(60)).status(); });
  close(accept(listener, nullptr, nullptr));
  close(listener);
  Server server(2, "numbers", root);
  joining.join();
  EXPECT_TRUE(status.ok()) << status;
}

TEST(JoiningLate, PeersGiveUpAtTheDeadlineAndNameTheAddress) {
  GroupClientOptions options;
  options.root_address = "127.0.0.1:1";  // nobody listens there
  const absl::Status status = GroupClient::Join(options, absl::Milliseconds(300)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("127.0.0.1:1"));
}

TEST(JoiningRefused, OtherFingerprint) {
  Server server(2);
  GroupOptions options = Options(server, 1, 2);
  options.fingerprint = "other numbers";
  const absl::Status status = Group::Join(options, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fingerprint other numbers"));
}

TEST(JoiningRefused, OtherWorldSize) {
  Server server(2);
  const absl::Status status = Group::Join(Options(server, 1, 4), nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "rank 1 was started for a group of 4, rank 0 for a group of 2");
}

TEST(JoiningRefused, RankThatIsTaken) {
  Server server(4);
  ASSERT_TRUE(GroupClient::Join(ClientOptions(server, 1, 4), absl::Seconds(60)).ok());
  const absl::Status status = Group::Join(Options(server, 1, 4), nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 is taken"));
}

TEST(JoiningRefused, AnAddressWhereSomethingElseAnswers) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  worker::v1::WorkerService::Service other;
  builder.RegisterService(&other);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  GroupClientOptions options;
  options.root_address = absl::StrCat("127.0.0.1:", port);
  EXPECT_EQ(GroupClient::Join(options, absl::Seconds(60)).status().code(),
            absl::StatusCode::kUnimplemented);
}

// Calls without the client's own checks.
class GroupServiceTest : public testing::Test {
 protected:
  grpc::Status Join(uint32_t rank, uint32_t world_size, const std::string& instance) {
    worker::v1::JoinRequest request;
    request.set_rank(rank);
    request.set_world_size(world_size);
    request.set_numerics_fingerprint("numbers");
    request.set_instance(instance);
    worker::v1::JoinResponse response;
    grpc::ClientContext context;
    return stub_->Join(&context, request, &response);
  }

  Server server_{4};
  std::unique_ptr<worker::v1::GroupService::Stub> stub_ = worker::v1::GroupService::NewStub(
      grpc::CreateChannel(server_.address(), grpc::InsecureChannelCredentials()));
};

TEST_F(GroupServiceTest, ARankMayRepeatItsJoinButNoOtherMayTakeItsPlace) {
  EXPECT_TRUE(Join(3, 4, "a").ok());
  EXPECT_TRUE(Join(3, 4, "a").ok());
  EXPECT_EQ(Join(3, 4, "b").error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_TRUE(Join(2, 4, "").ok());
  EXPECT_EQ(Join(2, 4, "").error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(GroupServiceTest, RefusesRanksThatCannotBePeers) {
  EXPECT_EQ(Join(0, 4, "a").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Join(4, 4, "a").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Join(4294967295u, 4, "a").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Join(1, 4, std::string(65, 'a')).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GroupServiceTest, GetKeyWaitsUntilTheDeadlineAndLeavesNoWaiterBehind) {
  // More callers that give up than may wait at once.
  for (size_t i = 0; i < LocalKeyStore::kMaxWatchers + 8; ++i) {
    worker::v1::GetKeyRequest request;
    request.set_epoch(server_.service().epoch());
    request.set_key("absent");
    worker::v1::GetKeyResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(5));
    const grpc::Status status = stub_->GetKey(&context, request, &response);
    ASSERT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << status.error_message();
  }
}

TEST_F(GroupServiceTest, KeysTravelBetweenPeersAndRankZero) {
  auto first = GroupClient::Join(ClientOptions(server_, 1, 4), absl::Seconds(60));
  auto second = GroupClient::Join(ClientOptions(server_, 2, 4), absl::Seconds(60));
  ASSERT_TRUE(first.ok() && second.ok());
  const std::string binary("a\0\xff", 3);
  std::thread setter([&] { EXPECT_TRUE((*first)->Set("key", binary).ok()); });
  EXPECT_EQ(*(*second)->Get("key", absl::Seconds(60)), binary);
  setter.join();
  EXPECT_EQ(*server_.service().keys().Get("key", absl::ZeroDuration()), binary);
  EXPECT_EQ((*second)->Set("key", "other").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ((*second)->Get("absent", absl::Milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(Epoch, KeysOfAnEndedOneAreAborted) {
  uint16_t port = 0;
  close(ListenOnUnusedPort(&port));
  const std::string address = absl::StrCat("127.0.0.1:", port);
  auto first = std::make_unique<Server>(2, "numbers", address);
  auto client = GroupClient::Join(ClientOptions(*first, 1, 2), absl::Seconds(60));
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*client)->Set("key", "value").ok());
  first.reset();
  Server restarted(2, "numbers", address);
  EXPECT_NE(restarted.service().epoch(), (*client)->epoch());
  EXPECT_EQ((*client)->Set("key", "value").code(), absl::StatusCode::kAborted);
  EXPECT_EQ((*client)->Get("key", absl::Seconds(60)).status().code(), absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace marcoro
