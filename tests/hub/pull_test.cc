// Pulling from a hub that behaves, and what it leaves in the cache.
#include "deploy/hub/pull.h"

#include <thread>

#include "gmock/gmock.h"
#include "tests/hub/pull_fixture.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

std::vector<std::string> NamesIn(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  return names;
}

TEST_F(PullTest, LaysOutTheCacheAsHuggingFacesToolsDo) {
  const auto folder = Pull();
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(*folder, Folder() / "snapshots" / Repository().commit);
  EXPECT_EQ(ReadFile(Folder() / "refs/main"), Repository().commit);
  EXPECT_THAT(NamesIn(*folder), UnorderedElementsAre("config.json", "tokenizer_config.json",
                                                     "tokenizer.model", "model.safetensors"));
  EXPECT_EQ(fs::read_symlink(*folder + "/model.safetensors"),
            "../../blobs/" + Sha256Hex(Weights()));
  EXPECT_EQ(fs::read_symlink(*folder + "/config.json"),
            "../../blobs/" + GitHash(Repository().small.at("config.json")));
  EXPECT_EQ(ReadFile(*folder + "/model.safetensors"), Weights());
  EXPECT_EQ(ReadFile(*folder + "/config.json"), Repository().small.at("config.json"));
  EXPECT_EQ(*FindInHubCache(cache_.path(), *ParseHubName("org/model")), *folder);
}

TEST_F(PullTest, LeavesNothingUnfinishedBehind) {
  ASSERT_TRUE(Pull().ok());
  EXPECT_THAT(NamesIn(Folder()), UnorderedElementsAre("blobs", "refs", "snapshots"));
  for (const std::string& name : NamesIn(Folder() / "blobs")) {
    EXPECT_EQ(name.find(".incomplete"), std::string::npos) << name;
  }
}

TEST_F(PullTest, ACommitIsPulledWithoutARef) {
  ASSERT_TRUE(Pull("org/model@" + Repository().commit).ok());
  EXPECT_FALSE(fs::exists(Folder() / "refs"));
}

TEST_F(PullTest, WhatIsThereIsNotDownloadedAgain) {
  ASSERT_TRUE(Pull().ok());
  const size_t before = hub_.storage_calls().size();
  ASSERT_TRUE(Pull().ok());
  EXPECT_EQ(hub_.storage_calls().size(), before);
}

TEST_F(PullTest, AFileThatIsMissingIsFetchedIntoTheSnapshotThatIsThere) {
  ASSERT_TRUE(Pull().ok());
  const fs::path snapshot = Folder() / "snapshots" / Repository().commit;
  fs::remove(snapshot / "tokenizer.model");
  fs::remove(WeightsBlob());
  std::ofstream(snapshot / "README.md") << "another program's";
  ASSERT_TRUE(Pull().ok());
  EXPECT_EQ(ReadFile(snapshot / "tokenizer.model"), Repository().large.at("tokenizer.model"));
  EXPECT_EQ(ReadFile(snapshot / "model.safetensors"), Weights());
  EXPECT_EQ(ReadFile(snapshot / "README.md"), "another program's");
}

TEST_F(PullTest, WeightsInSeveralFilesAreThoseOfTheIndex) {
  FakeRepository repository = NoiseRepository();
  repository.large = {{"one.safetensors", Noise(1000, 4)},
                      {"two.safetensors", Noise(1000, 5)},
                      {"consolidated.safetensors", Noise(2000, 6)}};
  repository.small["model.safetensors.index.json"] =
      R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})";
  FakeHub hub(repository);
  const auto folder = PullFrom(hub);
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_THAT(NamesIn(*folder),
              UnorderedElementsAre("config.json", "tokenizer_config.json", "one.safetensors",
                                   "two.safetensors", "model.safetensors.index.json"));
}

TEST_F(PullTest, TheTokenGoesToTheHubAndToNoOtherHost) {
  ASSERT_TRUE(Pull().ok());
  for (const HttpCall& call : hub_.calls()) {
    EXPECT_EQ(call.Header("authorization"), "Bearer hf_secret") << call.target;
  }
  ASSERT_FALSE(hub_.storage_calls().empty());
  for (const HttpCall& call : hub_.storage_calls()) {
    EXPECT_EQ(call.Header("authorization"), "") << call.target;
  }
}

TEST_F(PullTest, WithoutATokenNoneIsSent) {
  settings_.token.clear();
  ASSERT_TRUE(Pull().ok());
  for (const HttpCall& call : hub_.calls()) EXPECT_EQ(call.headers.count("authorization"), 0u);
}

TEST_F(PullTest, RedirectsAtTheHubItselfAreFollowed) {
  hub_.SetFault([](const HttpCall& call, HttpAnswer* answer) {
    if (absl::EndsWith(call.target, "/config.json")) {
      *answer = {.status = 307, .headers = {{"Location", "/elsewhere"}}};
    }
    if (call.target == "/elsewhere") {
      const std::string text = "{}";
      *answer = {.headers = {{"ETag", "\"" + GitHash(text) + "\""}}, .body = text};
    }
  });
  const auto folder = Pull();
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(ReadFile(*folder + "/config.json"), "{}");
}

TEST_F(PullTest, TellsHowFarItIsOnceAllIsThere) {
  std::vector<std::pair<uint64_t, uint64_t>> told;
  options_.progress = [&](uint64_t done, uint64_t total) { told.emplace_back(done, total); };
  ASSERT_TRUE(Pull().ok());
  ASSERT_GE(told.size(), 2u);
  for (size_t i = 0; i + 1 < told.size(); ++i) {
    EXPECT_LT(told[i].first, told[i].second);
    EXPECT_LE(told[i].first, told[i + 1].first);
  }
  EXPECT_EQ(told.back(), std::make_pair(uint64_t{3'000'000}, uint64_t{3'000'000}));
}

TEST_F(PullTest, ProgressCountsWhatThisRunHasToFetch) {
  fs::create_directories(Folder() / "blobs");
  std::ofstream(WeightsBlob().string() + ".incomplete", std::ios::binary)
      << Weights().substr(0, 1'000'000);
  std::pair<uint64_t, uint64_t> last;
  options_.progress = [&](uint64_t done, uint64_t total) { last = {done, total}; };
  ASSERT_TRUE(Pull().ok());
  EXPECT_EQ(last, std::make_pair(uint64_t{2'000'000}, uint64_t{2'000'000}));
}

TEST_F(PullTest, TwoPullsAtOnceFetchEachFileOnce) {
  absl::StatusOr<std::string> first;
  absl::StatusOr<std::string> second;
  const HubName name = *ParseHubName("org/model");
  std::thread other([&] { first = PullModel(settings_, name, options_); });
  second = PullModel(settings_, name, options_);
  other.join();
  EXPECT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(second.ok()) << second.status();
  EXPECT_THAT(WeightsRanges(), ElementsAre(""));
}

TEST_F(PullTest, APullWaitsForAnotherOnlyAsLongAsThatGetsOn) {
  hub_.SetStorageFault([this](const HttpCall& call, HttpAnswer* answer) {
    if (!IsForWeights(call)) return;
    answer->cut_after = 1000;
    answer->stall = true;
  });
  PullOptions patient = options_;
  patient.retry.attempts = 1;
  patient.stall_timeout = absl::Seconds(3);
  const HubName name = *ParseHubName("org/model");
  std::thread holder([&] { EXPECT_FALSE(PullModel(settings_, name, patient).ok()); });
  while (WeightsRanges().empty()) std::this_thread::yield();
  options_.lock_patience = absl::Milliseconds(300);
  const absl::Status status = Pull().status();
  holder.join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("held by another download"));
}

TEST_F(PullTest, OfflineIsWhatTheCacheHas) {
  settings_.offline = true;
  const absl::Status status = Pull().status();
  EXPECT_THAT(status.message(), AllOf(HasSubstr("HF_HUB_OFFLINE"), HasSubstr("marcoro pull")));
  EXPECT_TRUE(hub_.calls().empty());
  settings_.offline = false;
  const auto folder = Pull();
  ASSERT_TRUE(folder.ok());
  settings_.offline = true;
  const size_t calls = hub_.calls().size();
  EXPECT_EQ(*Pull(), *folder);
  EXPECT_EQ(hub_.calls().size(), calls);
}

TEST_F(PullTest, ANewCommitOfABranchIsASnapshotBesideTheOld) {
  ASSERT_TRUE(Pull().ok());
  FakeRepository repository = NoiseRepository();
  repository.commit = std::string(40, 'f');
  repository.small["config.json"] = "{ }";
  FakeHub newer(repository);
  const auto folder = PullFrom(newer);
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(ReadFile(*folder + "/config.json"), "{ }");
  EXPECT_EQ(ReadFile(Folder() / "refs/main"), repository.commit);
  EXPECT_TRUE(fs::exists(Folder() / "snapshots" / Repository().commit));
  EXPECT_EQ(WeightsRanges().size(), 1u);  // the weights are the same blob
}

}  // namespace
}  // namespace marcoro
