// A recipe is a model: what is merged while loading answers as the merge that is written first, bit
// for bit, at every tensor-parallel degree, and after a crash.
#include <signal.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

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

TEST_F(RecipeTest, TheServerTellsItsNameAndLeavesNoFolderBehind) {
  ASSERT_EQ(setenv("TMPDIR", folder_.c_str(), 1), 0);
  {
    Cluster cluster({.model = Recipe("slerp_gradient")});
    ASSERT_TRUE(cluster.ready()) << cluster.log();
    const Reply reply = cluster.client().Generate(Greedy("Return", 1));
    EXPECT_EQ(reply.response.model(), "slerp_gradient");
    EXPECT_FALSE(fs::is_empty(folder_)) << "the coordinator's folder";
  }
  unsetenv("TMPDIR");
  EXPECT_TRUE(fs::is_empty(folder_));
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
