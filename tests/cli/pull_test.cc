// `marcoro pull` and `marcoro serve --model=ORG/NAME`, the real program with a hub on this host.
#include <csignal>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"
#include "tests/hub/fake_hub.h"
#include "tests/hub/temporary_folder.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class PullCommandTest : public testing::Test {
 protected:
  PullCommandTest() : hub_(RepositoryOfFolder(ModelFolder("tiny"))) {}

  // A command in an environment where this hub, this cache and this token are the usual ones.
  std::vector<std::string> Command(std::vector<std::string> arguments) const {
    std::vector<std::string> command = {"/usr/bin/env",
                                        "-u",
                                        "HF_HUB_CACHE",
                                        "-u",
                                        "HF_HUB_OFFLINE",
                                        "HF_ENDPOINT=" + hub_.url(),
                                        "HF_HOME=" + home_.path(),
                                        "HF_TOKEN=hf_secret",
                                        Program("marcoro")};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return command;
  }
  Finished Run(std::vector<std::string> arguments) const {
    return RunToEnd(Command(std::move(arguments)), absl::Minutes(2));
  }
  std::string Snapshot() const {
    return absl::StrCat(home_.path(), "/hub/models--org--model/snapshots/",
                        hub_.repository().commit);
  }
  std::string WriteRecipe(const std::string& model) const {
    const std::string path = home_.path() + "/recipe.yml";
    std::ofstream(path) << "merge_method: passthrough\ndtype: bfloat16\nslices:\n  - sources:\n"
                           "      - {model: "
                        << model << ", layer_range: [0, 2]}\n";
    return path;
  }

  const TemporaryFolder home_;
  FakeHub hub_;
};

TEST_F(PullCommandTest, PrintsTheFolderAndShowsProgressElsewhere) {
  const Finished run = Run({"pull", "org/model"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, Snapshot() + "\n");
  EXPECT_THAT(run.err, AllOf(HasSubstr("pulling org/model"), HasSubstr("100 %"),
                             Not(HasSubstr("hf_secret"))));
  EXPECT_TRUE(fs::exists(Snapshot() + "/model.safetensors"));
  EXPECT_TRUE(fs::exists(Snapshot() + "/tokenizer.model"));
}

TEST_F(PullCommandTest, AFailureIsOneLineWithoutTheToken) {
  const Finished run = Run({"pull", "org/other"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, AllOf(HasSubstr("marcoro pull: org/other: "), HasSubstr("answers 404"),
                             Not(HasSubstr("hf_secret"))));
  EXPECT_EQ(run.out, "");
}

TEST_F(PullCommandTest, NamesThatAreNoneAreRefused) {
  for (const char* name : {"model", "../a/b", "a/..", "a/b@../c"}) {
    const Finished run = Run({"pull", name});
    EXPECT_EQ(run.exit_code, 1) << name;
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
  EXPECT_TRUE(hub_.calls().empty());
  EXPECT_EQ(Run({"pull"}).exit_code, 2);
}

TEST_F(PullCommandTest, KilledItLeavesNothingWholeAndIsGoneOnWith) {
  hub_.SetStorageFault([](const HttpCall&, HttpAnswer* answer) {
    answer->cut_after = answer->body.size() / 2;
    answer->stall = true;
  });
  Process pull(Command({"pull", "org/model"}));
  const std::string& weights = hub_.repository().large.at("model.safetensors");
  const std::string blob =
      absl::StrCat(home_.path(), "/hub/models--org--model/blobs/", Sha256Hex(weights));
  ASSERT_TRUE(Eventually([&] {
    std::error_code error;
    return fs::file_size(blob + ".incomplete", error) == weights.size() / 2 && !error;
  })) << pull.err();
  pull.Signal(SIGKILL);
  EXPECT_EQ(pull.AwaitExit(absl::Seconds(5)), 128 + SIGKILL);
  EXPECT_FALSE(fs::exists(blob));
  EXPECT_FALSE(fs::exists(Snapshot()));
  hub_.SetStorageFault(nullptr);
  const Finished again = Run({"pull", "org/model"});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(hub_.storage_calls().back().Header("range"),
            absl::StrCat("bytes=", weights.size() / 2, "-"));
  EXPECT_TRUE(fs::exists(Snapshot() + "/model.safetensors"));
}

TEST_F(PullCommandTest, OfARecipeThoseModelsArePulledThatNoFolderProvides) {
  const Finished pulled = Run({"pull", WriteRecipe("org/model")});
  EXPECT_EQ(pulled.exit_code, 0) << pulled.err;
  EXPECT_EQ(pulled.out, Snapshot() + "\n");
  const size_t calls = hub_.calls().size();
  const Finished local = Run({"pull", WriteRecipe(ModelFolder("tiny"))});
  EXPECT_EQ(local.exit_code, 0) << local.err;
  EXPECT_EQ(local.out, "");
  EXPECT_EQ(hub_.calls().size(), calls);
  EXPECT_THAT(Run({"pull", WriteRecipe("/no/such/folder")}).err, HasSubstr("/no/such/folder"));
}

TEST_F(PullCommandTest, ServePullsWhatTheCacheLacksAndIsKnownByTheHubsName) {
  const int port = FreePorts(3);
  const std::vector<std::string> serve = Command(
      {"serve", "--model=org/model", absl::StrCat("--listen=127.0.0.1:", port), "--metrics="});
  for (const bool first : {true, false}) {
    const size_t calls = hub_.calls().size();
    Process server(serve);
    ASSERT_TRUE(server.AwaitOutput("ready:", absl::Seconds(60))) << server.err();
    EXPECT_EQ(Client(absl::StrCat("127.0.0.1:", port)).Model().name(), "org/model");
    EXPECT_EQ(hub_.calls().size() > calls, first);  // then the cache has it
    server.Signal(SIGTERM);
    EXPECT_EQ(server.AwaitExit(absl::Seconds(30)), 0) << server.err();
  }
}

TEST_F(PullCommandTest, ServeTellsInOneLineThatAFolderIsMissing) {
  const Finished run = Run({"serve", "--model=/no/such/folder"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(run.err,
            "marcoro serve: --model=/no/such/folder is no folder or recipe here, and no name "
            "ORG/NAME of a hub\n");
}

TEST_F(PullCommandTest, ServeTellsWhatTheHubRefuses) {
  const Finished run =
      Run({"serve", "--model=org/other", absl::StrCat("--listen=127.0.0.1:", FreePorts(3))});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err,
              AllOf(HasSubstr("--model=org/other is no folder here"), HasSubstr("answers 404")));
}

}  // namespace
}  // namespace marcoro
