#include "coordinator/routing/registry.h"

#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Addresses = std::vector<std::string>;

TEST(ParseTargets, TakesStaticAndDnsEntries) {
  const std::vector<Target> targets =
      ParseTargets("10.0.0.1:9000,worker-0:9001,[::1]:9002,dns:///workers.default.svc:9003")
          .value();
  ASSERT_EQ(targets.size(), 4u);
  EXPECT_EQ(targets[0].host, "10.0.0.1");
  EXPECT_EQ(targets[0].port, "9000");
  EXPECT_FALSE(targets[0].resolve);
  EXPECT_EQ(targets[1].host, "worker-0");
  EXPECT_EQ(targets[2].host, "[::1]");
  EXPECT_EQ(targets[2].port, "9002");
  EXPECT_EQ(targets[3].host, "workers.default.svc");
  EXPECT_EQ(targets[3].port, "9003");
  EXPECT_TRUE(targets[3].resolve);
}

TEST(ParseTargets, NamesTheBadEntry) {
  for (const std::string bad :
       {"", "host", "host:", ":9000", "host:0", "host:65536", "host:-1", "host:12x", "::1:9000",
        "dns:///host", "dns://8.8.8.8/host:9000", "http://host:9000", "two words:9000"}) {
    const absl::Status status = ParseTargets("good:1," + bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("'" + bad + "'"));
  }
}

// Answers from a script; the last answer is repeated.
class ScriptedResolver {
 public:
  explicit ScriptedResolver(std::deque<absl::StatusOr<Addresses>> answers)
      : answers_(std::move(answers)) {}

  ResolveFunction Function() {
    return [this](const std::string& host, const std::string& port) {
      EXPECT_EQ(host, "workers");
      EXPECT_EQ(port, "9000");
      absl::StatusOr<Addresses> answer = answers_.front();
      if (answers_.size() > 1) answers_.pop_front();
      return answer;
    };
  }

 private:
  std::deque<absl::StatusOr<Addresses>> answers_;
};

// The first `count` lists that a registry reports.
std::vector<Addresses> Reports(const std::string& targets, ResolveFunction resolve, size_t count) {
  absl::Mutex mutex;
  std::vector<Addresses> reports;
  Registry registry(ParseTargets(targets).value(), std::move(resolve), absl::Milliseconds(1),
                    [&](Addresses addresses) {
                      absl::MutexLock lock(&mutex);
                      if (reports.size() < count) reports.push_back(std::move(addresses));
                    });
  registry.Start();
  absl::MutexLock lock(&mutex);
  const auto enough = [&] { return reports.size() == count; };
  EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(30)));
  return reports;
}

TEST(Registry, ReportsAStaticListOnceSortedAndWithoutRepetition) {
  EXPECT_THAT(Reports("b:2,a:1,b:2", ResolveHost, 1), ElementsAre(ElementsAre("a:1", "b:2")));
}

TEST(Registry, FollowsWhatTheNameStandsFor) {
  ScriptedResolver resolver({Addresses{"ipv4:10.0.0.1:9000"},
                             Addresses{"ipv4:10.0.0.2:9000", "ipv4:10.0.0.1:9000"},
                             Addresses{"ipv4:10.0.0.2:9000"}, Addresses{}});
  EXPECT_THAT(Reports("dns:///workers:9000", resolver.Function(), 5),
              ElementsAre(IsEmpty(), ElementsAre("ipv4:10.0.0.1:9000"),
                          ElementsAre("ipv4:10.0.0.1:9000", "ipv4:10.0.0.2:9000"),
                          ElementsAre("ipv4:10.0.0.2:9000"), IsEmpty()));
}

TEST(Registry, KeepsTheLastAnswerWhileTheResolverFails) {
  ScriptedResolver resolver(
      {Addresses{"ipv4:10.0.0.1:9000"}, absl::UnavailableError("the name server is away")});
  EXPECT_THAT(Reports("static:1,dns:///workers:9000", resolver.Function(), 3),
              ElementsAre(ElementsAre("static:1"), ElementsAre("ipv4:10.0.0.1:9000", "static:1"),
                          ElementsAre("ipv4:10.0.0.1:9000", "static:1")));
}

TEST(ResolveHost, GivesNumericAddresses) {
  EXPECT_THAT(ResolveHost("127.0.0.1", "80").value(), ElementsAre("ipv4:127.0.0.1:80"));
  EXPECT_THAT(ResolveHost("[::1]", "80").value(), ElementsAre("ipv6:[::1]:80"));
  EXPECT_THAT(ResolveHost("localhost", "80").value(),
              Contains(AnyOf("ipv4:127.0.0.1:80", "ipv6:[::1]:80")));
}

}  // namespace
}  // namespace marcoro
