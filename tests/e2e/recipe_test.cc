// A recipe is a model: what is merged while loading answers as the merge that is written first, bit
// for bit, at every tensor-parallel degree, and after a crash.
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string Recipe(const std::string& name, const std::string& folder = "merge") {
  return absl::StrCat(ModelFolder(folder), "/recipes/", name, ".yml");
}

class RecipeTest : public testing::Test {
 protected:
  RecipeTest() {
    std::string path = testing::TempDir() + "/marcoro_recipe_XXXXXX";
    folder_ = mkdtemp(path.data());
  }
  ~RecipeTest() override { fs::remove_all(folder_); }

  fs::path folder_;
};

// Greedy, drawn, and scored.
std::vector<std::string> Answers(Client& client) {
  std::vector<v1::GenerateRequest> requests = {Greedy("Return the", 40),
                                               Sampled("If the file", 40, 7)};
  requests[1].set_prompt_logprobs(2);
  std::vector<std::string> bits;
  for (v1::GenerateRequest& request : requests) {
    request.set_logprobs(3);
    const Reply reply = client.Generate(request);
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    bits.push_back(Bits(reply.response));
  }
  return bits;
}

struct Served {
  const char* folder;
  const char* name;
};

class ServedRecipe : public RecipeTest, public testing::WithParamInterface<Served> {};

TEST_P(ServedRecipe, GivesTheBitsOfItsWrittenMergeAtEveryDegree) {
  const std::string recipe = Recipe(GetParam().name, GetParam().folder);
  const std::string written = (folder_ / GetParam().name).string();
  const Finished merge = RunToEnd({Program("marcoro"), "merge", recipe, written});
  ASSERT_EQ(merge.exit_code, 0) << merge.err;
  std::vector<std::string> expected;
  {
    Cluster cluster({.model = written});
    ASSERT_TRUE(cluster.ready()) << cluster.log();
    expected = Answers(cluster.client());
  }
  for (const int tp : {1, 2}) {
    SCOPED_TRACE(tp);
    Cluster cluster({.model = recipe, .tp = tp});
    ASSERT_TRUE(cluster.ready()) << cluster.log();
    EXPECT_TRUE(Answers(cluster.client()) == expected) << "the bits differ";
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, ServedRecipe,
                         testing::Values(Served{"merge", "slerp_gradient"}, Served{"merge", "ties"},
                                         Served{"merge", "passthrough_stack"}),
                         [](const auto& test) { return std::string(test.param.name); });
INSTANTIATE_TEST_SUITE_P(Fp8Parents, ServedRecipe,
                         testing::Values(Served{"quantized", "slerp_of_formats"},
                                         Served{"quantized", "passthrough_stack"}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_F(RecipeTest, AWorkerThatMergesAgainAfterACrashGivesTheSameBits) {
  Cluster cluster({.model = Recipe("slerp_gradient"), .tp = 2});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const std::vector<std::string> before = Answers(cluster.client());
  kill(cluster.WorkerPid(0, 1), SIGKILL);
  EXPECT_TRUE(Answers(cluster.client()) == before) << "the bits changed";
  EXPECT_TRUE(cluster.AwaitAllReplicas());
}

// Where `marcoro serve` keeps what it writes for coordinators: a folder for each server.
class ServersFolder : public RecipeTest {
 protected:
  ServersFolder() { setenv("TMPDIR", folder_.c_str(), 1); }
  ~ServersFolder() override { unsetenv("TMPDIR"); }

  std::set<std::string> Folders() const {
    std::set<std::string> folders;
    for (const auto& entry :
         fs::directory_iterator(folder_ / absl::StrCat("marcoro-", geteuid()))) {
      if (entry.is_directory()) folders.insert(entry.path());
    }
    return folders;
  }
};

TEST_F(ServersFolder, GoesAwayWithTheServerWhichTellsTheRecipeInItsPlace) {
  {
    Cluster cluster({.model = Recipe("slerp_gradient")});
    ASSERT_TRUE(cluster.ready()) << cluster.log();
    const auto model = cluster.client().Model();
    EXPECT_EQ(model.name(), "slerp_gradient");
    EXPECT_EQ(model.checkpoint(), Recipe("slerp_gradient"));
    EXPECT_EQ(cluster.client().Generate(Greedy("Return", 1)).response.model(), "slerp_gradient");
    EXPECT_EQ(Folders().size(), 1u);
  }
  EXPECT_TRUE(Folders().empty());
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1) << "that of all servers stays";
}

TEST_F(ServersFolder, OfAKilledServerIsRemovedByTheNextAndNoOther) {
  std::set<std::string> living;
  Cluster first({.model = Recipe("slerp_gradient")});
  ASSERT_TRUE(first.ready()) << first.log();
  living = Folders();
  std::string dead;
  {
    const int port = FreePorts(3);
    Process second({Program("marcoro"), "serve", "--model=" + Recipe("ties"),
                    absl::StrCat("--listen=127.0.0.1:", port),
                    absl::StrCat("--metrics=127.0.0.1:", port + 1)});
    ASSERT_TRUE(second.AwaitOutput("ready:", absl::Seconds(60))) << second.err();
    for (const std::string& folder : Folders()) {
      if (!living.contains(folder)) dead = folder;
    }
    second.Signal(SIGKILL);
    EXPECT_EQ(second.AwaitExit(absl::Seconds(5)), 128 + SIGKILL);
    EXPECT_TRUE(second.AwaitTreeGone(absl::Seconds(5)));
  }
  ASSERT_TRUE(fs::exists(dead)) << "the killed one could not clean up";
  Cluster third({.model = Recipe("passthrough_stack")});
  ASSERT_TRUE(third.ready()) << third.log();
  EXPECT_FALSE(fs::exists(dead));
  for (const std::string& folder : living) EXPECT_TRUE(fs::exists(folder)) << folder;
  EXPECT_EQ(Folders().size(), 2u);
  // The first has its files still: its coordinator can be started again.
  kill(first.CoordinatorPid(), SIGKILL);
  EXPECT_TRUE(Eventually([&] {
    return Client(first.address()).Generate(Greedy("Return", 1)).status.ok();
  })) << first.log();
}

TEST_F(RecipeTest, ABadRecipeIsOneLineThatNamesFileAndLine) {
  const std::string recipe = (folder_ / "bad.yml").string();
  std::ofstream(recipe) << "models:\n- model: " << ModelFolder("merge/parents/a")
                        << "\nmerge_method: slurp\ndtype: bfloat16\n";
  const Finished serve = RunToEnd({Program("marcoro"), "serve", "--model", recipe});
  EXPECT_EQ(serve.exit_code, 1);
  EXPECT_THAT(serve.err, HasSubstr("bad.yml:3:"));
  EXPECT_THAT(serve.err, HasSubstr("slerp"));
  EXPECT_EQ(std::count(serve.err.begin(), serve.err.end(), '\n'), 1) << serve.err;
}

}  // namespace
}  // namespace marcoro
