// `marcoro serve` as a process tree. tests/e2e has what clients see of it, and what stops it from
// starting at all.
#include <csignal>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> Serve(int port, std::vector<std::string> flags) {
  flags.insert(flags.begin(), {Program("marcoro"), "serve", "--model=" + ModelFolder("tiny"),
                               "--listen=127.0.0.1:" + std::to_string(port),
                               "--metrics=127.0.0.1:" + std::to_string(port + 1)});
  return flags;
}

TEST(ServeTest, ItSaysWhereItListensOnceEverythingIsReady) {
  const int port = FreePorts(3);
  Process serve(Serve(port, {"--tp=2"}));
  ASSERT_TRUE(serve.AwaitOutput("ready:", absl::Seconds(60))) << serve.err();
  EXPECT_THAT(serve.out(), HasSubstr("ready: grpc on 127.0.0.1:" + std::to_string(port) +
                                     ", metrics on 127.0.0.1:" + std::to_string(port + 1) + "\n"));
  EXPECT_EQ(ChildrenOf(serve.pid()).size(), 3u);
}

TEST(ServeTest, KilledWhileItStartsItLeavesNoProcess) {
  Process serve(Serve(FreePorts(5), {"--tp=2", "--replicas=2"}));
  ASSERT_TRUE(Eventually([&] { return ChildrenOf(serve.pid()).size() == 5; })) << serve.err();
  serve.Signal(SIGKILL);
  EXPECT_EQ(serve.AwaitExit(absl::Seconds(5)), 128 + SIGKILL);
  EXPECT_TRUE(serve.AwaitTreeGone(absl::Seconds(5)));
}

TEST(ServeTest, ToldToStopWhileItStartsItEndsCleanly) {
  Process serve(Serve(FreePorts(3), {"--tp=2"}));
  ASSERT_TRUE(Eventually([&] { return ChildrenOf(serve.pid()).size() == 3; })) << serve.err();
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.AwaitExit(absl::Seconds(30)), 0) << serve.err();
  EXPECT_TRUE(serve.AwaitTreeGone(absl::Seconds(5)));
}

TEST(ServeTest, AGroupThatLosesARankIsStartedAgainWhole) {
  Cluster cluster({.model = "tiny", .tp = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const pid_t root = cluster.WorkerPid(0, 0);
  const pid_t coordinator = cluster.CoordinatorPid();
  kill(cluster.WorkerPid(0, 1), SIGKILL);
  ASSERT_TRUE(Eventually([&] {
    return cluster.serve().err().find("replica 0: ready again") != std::string::npos;
  })) << cluster.log();
  EXPECT_THAT(cluster.serve().err(), HasSubstr("replica 0: process 1 was killed by signal 9"));
  EXPECT_NE(cluster.WorkerPid(0, 0), root);
  EXPECT_EQ(cluster.CoordinatorPid(), coordinator);
}

}  // namespace
}  // namespace marcoro
