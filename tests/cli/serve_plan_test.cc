#include "deploy/cli/serve_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace marcoro {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;
using ::testing::Not;

absl::StatusOr<ServeConfig> Parse(const std::vector<std::string>& arguments) {
  FlagTable::Parsed parsed;
  return ParseServe(arguments, &parsed);
}

std::string Error(const std::vector<std::string>& arguments) {
  return std::string(Parse(arguments).status().message());
}

constexpr char kPrograms[] = "/bin/of/the/build";

ServeAddresses TwoReplicas() {
  return {.workers = {"127.0.0.1:1001", "127.0.0.1:1002"},
          .worker_metrics = {"127.0.0.1:9091", "127.0.0.1:9092"}};
}

TEST(ParseServeTest, FlagsGoToWhoKnowsThem) {
  const auto config = Parse({"--model=dir", "--tp", "2", "--weights", "bf16", "--chat-template=raw",
                             "--log-level=warn", "--no-prefix-cache"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model, "dir");
  EXPECT_EQ(config->tp, 2);
  EXPECT_THAT(config->worker_flags,
              ElementsAre("--weights=bf16", "--log-level=warn", "--prefix-cache=false"));
  EXPECT_THAT(config->coordinator_flags, ElementsAre("--chat-template=raw", "--log-level=warn"));
}

TEST(ParseServeTest, WhatServeDecidesItselfIsRefused) {
  for (const char* flag : {"--rank=0", "--world-size=2", "--root=a:1", "--workers=a:1"}) {
    EXPECT_THAT(Error({"--model=dir", flag}), HasSubstr("serve sets this itself")) << flag;
  }
}

TEST(ParseServeTest, UnknownFlagsArgumentsAndMissingModelsAreNamed) {
  EXPECT_THAT(Error({"--model=dir", "--bogus=1"}), HasSubstr("--bogus"));
  EXPECT_THAT(Error({"--model=dir", "extra"}), HasSubstr("'extra'"));
  EXPECT_THAT(Error({}), HasSubstr("--model=MODEL is missing"));
}

TEST(ParseServeTest, FlagsOfThePartsAreCheckedBeforeAnythingStarts) {
  EXPECT_THAT(Error({"--model=dir", "--weights=int4"}),
              HasSubstr("--weights=int4: must be one of"));
  EXPECT_THAT(Error({"--model=dir", "--max-sequences=0"}), HasSubstr("--max-sequences=0"));
  EXPECT_THAT(Error({"--model=dir", "--chat-template=bogus"}), HasSubstr("--chat-template=bogus"));
  EXPECT_THAT(Error({"--model=dir", "--queue-timeout=soon"}), HasSubstr("--queue-timeout=soon"));
}

TEST(ParseServeTest, HelpNeedsNoModel) {
  FlagTable::Parsed parsed;
  ASSERT_TRUE(ParseServe({"--help"}, &parsed).ok());
  EXPECT_EQ(parsed.print, FlagTable::Print::kHelp);
}

TEST(ServePlanTest, RankZeroListensAndItsPeersFindIt) {
  const auto config = Parse({"--model=dir", "--tp=2", "--replicas=2", "--drain-timeout=7s"});
  ASSERT_TRUE(config.ok());
  EXPECT_THAT(WorkerArguments(*config, TwoReplicas(), /*replica=*/1, /*rank=*/0, 8, kPrograms),
              ElementsAre("/bin/of/the/build/marcoro-worker", "--model=dir", "--world-size=2",
                          "--rank=0", "--threads=2", "--listen=127.0.0.1:1002",
                          "--metrics=127.0.0.1:9092", "--drain-timeout=7s"));
  EXPECT_THAT(
      WorkerArguments(*config, TwoReplicas(), /*replica=*/1, /*rank=*/1, 8, kPrograms),
      ElementsAre("/bin/of/the/build/marcoro-worker", "--model=dir", "--world-size=2", "--rank=1",
                  "--threads=2", "--root=127.0.0.1:1002", "--drain-timeout=7s"));
}

TEST(UseModelTest, AModelOfAHubIsServedFromItsFolderUnderItsName) {
  auto config = Parse({"--model=org/model"});
  ASSERT_TRUE(config.ok());
  UseModel({.path = "/cache/snapshots/0123", .name = "org/model"}, &*config);
  EXPECT_THAT(CoordinatorArguments(*config, TwoReplicas(), kPrograms),
              IsSupersetOf({"--model=/cache/snapshots/0123", "--model-name=org/model"}));
  EXPECT_THAT(WorkerArguments(*config, TwoReplicas(), 0, 0, 1, kPrograms),
              Contains("--model=/cache/snapshots/0123"));
}

TEST(UseModelTest, AGivenNameComesLastAndSoCounts) {
  auto config = Parse({"--model=org/model", "--model-name=mine"});
  ASSERT_TRUE(config.ok());
  UseModel({.path = "/cache/snapshots/0123", .name = "org/model"}, &*config);
  EXPECT_THAT(config->coordinator_flags,
              ElementsAre("--model-name=org/model", "--model-name=mine"));
}

TEST(UseModelTest, AFolderIsServedAsItIs) {
  auto config = Parse({"--model=dir"});
  ASSERT_TRUE(config.ok());
  UseModel({.path = "dir", .name = ""}, &*config);
  EXPECT_EQ(config->model, "dir");
  EXPECT_TRUE(config->coordinator_flags.empty());
}

TEST(UseModelTest, ARecipeIsMergedByTheWorkersAndCalledByItsName) {
  auto config = Parse({"--model=recipes/marcoro.yml"});
  ASSERT_TRUE(config.ok());
  UseRecipeFolder("/tmp/made", &*config);
  EXPECT_THAT(CoordinatorArguments(*config, TwoReplicas(), kPrograms),
              IsSupersetOf({"--model=/tmp/made", "--model-name=marcoro",
                            "--checkpoint-name=recipes/marcoro.yml"}));
  EXPECT_THAT(WorkerArguments(*config, TwoReplicas(), 0, 0, 1, kPrograms),
              Contains("--model=recipes/marcoro.yml"));
}

TEST(ServePlanTest, EveryRankHasAThreadHoweverFewProcessorsThereAre) {
  const auto config = Parse({"--model=dir", "--tp=4", "--replicas=2"});
  ASSERT_TRUE(config.ok());
  EXPECT_THAT(WorkerArguments(*config, TwoReplicas(), 0, 0, /*processors=*/2, kPrograms),
              Contains("--threads=1"));
}

TEST(ServePlanTest, GivenThreadsAreTakenAsTheyAre) {
  const auto config = Parse({"--model=dir", "--threads=5"});
  ASSERT_TRUE(config.ok());
  EXPECT_THAT(WorkerArguments(*config, TwoReplicas(), 0, 0, 2, kPrograms), Contains("--threads=5"));
}

TEST(ServePlanTest, TheCoordinatorKnowsAllReplicas) {
  const auto config = Parse({"--model=dir", "--replicas=2", "--listen=127.0.0.1:5", "--metrics="});
  ASSERT_TRUE(config.ok());
  EXPECT_THAT(CoordinatorArguments(*config, TwoReplicas(), kPrograms),
              ElementsAre("/bin/of/the/build/marcoro-coordinator", "--model=dir",
                          "--workers=127.0.0.1:1001,127.0.0.1:1002", "--listen=127.0.0.1:5",
                          "--metrics=", "--drain-timeout=30s"));
}

TEST(ChooseAddressesTest, EveryReplicaHasAPortOfItsOwnOnTheLoopbackInterface) {
  const auto config = Parse({"--model=dir", "--replicas=8", "--metrics=127.0.0.1:9100"});
  ASSERT_TRUE(config.ok());
  const auto addresses = ChooseAddresses(*config);
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  EXPECT_EQ(std::set<std::string>(addresses->workers.begin(), addresses->workers.end()).size(), 8u);
  EXPECT_THAT(addresses->workers, testing::Each(testing::StartsWith("127.0.0.1:")));
  EXPECT_EQ(addresses->worker_metrics.front(), "127.0.0.1:9101");
  EXPECT_EQ(addresses->worker_metrics.back(), "127.0.0.1:9108");
}

TEST(ChooseAddressesTest, WithoutMetricsWorkersHaveNone) {
  const auto config = Parse({"--model=dir", "--metrics="});
  ASSERT_TRUE(config.ok());
  const auto addresses = ChooseAddresses(*config);
  ASSERT_TRUE(addresses.ok());
  EXPECT_TRUE(addresses->worker_metrics.empty());
  EXPECT_THAT(WorkerArguments(*config, *addresses, 0, 0, 2, kPrograms),
              Not(Contains(HasSubstr("--metrics"))));
}

TEST(ChooseAddressesTest, AMalformedMetricsAddressIsNamed) {
  for (const char* flag :
       {"--metrics=9090", "--metrics=:9090", "--metrics=a:b", "--metrics=a:65536"}) {
    const auto config = Parse({"--model=dir", flag});
    const absl::Status status = config.ok() ? ChooseAddresses(*config).status() : config.status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << flag;
    EXPECT_THAT(std::string(status.message()), HasSubstr(flag));
  }
}

}  // namespace
}  // namespace marcoro
