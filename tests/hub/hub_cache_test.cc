#include "worker/weights/hub_cache.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hub/temporary_folder.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr char kCommit[] = "0123456789abcdef0123456789abcdef01234567";

void Write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

// A cache with org/model, as Hugging Face's tools lay it out.
class HubCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    Write(folder_ / "refs/main", kCommit);
    AddFile("config.json", "{}");
    AddFile("model.safetensors", "weights");
  }
  void AddFile(const std::string& name, const std::string& bytes) {
    Write(folder_ / "blobs" / ("hash-of-" + name), bytes);
    fs::create_directories(snapshot_);
    fs::create_symlink("../../blobs/hash-of-" + name, snapshot_ / name);
  }
  absl::StatusOr<std::string> Find(const std::string& name) const {
    const auto parsed = ParseHubName(name);
    if (!parsed.ok()) return parsed.status();
    return FindInHubCache(cache_.path(), *parsed);
  }

  const TemporaryFolder cache_;
  const fs::path folder_ = fs::path(cache_.path()) / "models--org--model";
  const fs::path snapshot_ = folder_ / "snapshots" / kCommit;
};

TEST(ParseHubNameTest, TakesBranchesTagsAndCommits) {
  const auto plain = ParseHubName("AIDC-ai-business/Marcoroni-7B-v3");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->repository, "AIDC-ai-business/Marcoroni-7B-v3");
  EXPECT_EQ(plain->revision, "main");
  EXPECT_EQ(plain->ToString(), "AIDC-ai-business/Marcoroni-7B-v3");
  for (const std::string revision : {"v0.1", "refs/pr/1", kCommit}) {
    const auto name = ParseHubName("EmbeddedLLM/Mistral-7B-Merge-14-v0.1@" + revision);
    ASSERT_TRUE(name.ok()) << name.status();
    EXPECT_EQ(name->revision, revision);
    EXPECT_EQ(name->ToString(), "EmbeddedLLM/Mistral-7B-Merge-14-v0.1@" + revision);
  }
}

TEST(ParseHubNameTest, RefusesWhatCouldLeadOutOfTheCache) {
  for (const std::string& name : {std::string(""),
                                  std::string("model"),
                                  std::string("a/b/c"),
                                  std::string("/a/b"),
                                  std::string("../b"),
                                  std::string("a/.."),
                                  std::string("a/b..c"),
                                  std::string("./b"),
                                  std::string("a/b--c"),
                                  std::string("-a/b"),
                                  std::string("a/b-"),
                                  std::string("a/b."),
                                  std::string("a/b c"),
                                  std::string("a/b.git"),
                                  std::string("a/b\n"),
                                  std::string("a\0/b", 4),
                                  "a/" + std::string(200, 'b'),
                                  std::string("a/b@"),
                                  std::string("a/b@.."),
                                  std::string("a/b@../x"),
                                  std::string("a/b@x/../y"),
                                  std::string("a/b@/x"),
                                  std::string("a/b@x//y"),
                                  std::string("a/b@.x"),
                                  std::string("a/b@x@y"),
                                  std::string("a/b@x.lock"),
                                  std::string("a/b@x y"),
                                  "a/b@" + std::string(300, 'x')}) {
    EXPECT_EQ(ParseHubName(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST_F(HubCacheTest, ABranchIsFoundThroughItsRef) {
  const auto found = Find("org/model");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, snapshot_.string());
}

TEST_F(HubCacheTest, ACommitNeedsNoRef) {
  fs::remove_all(folder_ / "refs");
  EXPECT_TRUE(Find(std::string("org/model@") + kCommit).ok());
  EXPECT_TRUE(absl::IsNotFound(Find("org/model").status()));
}

TEST_F(HubCacheTest, WhatIsNotThereIsToldWithTheCommandThatHelps) {
  for (const char* name : {"org/other", "org/model@v2"}) {
    const absl::Status status = Find(name).status();
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_THAT(status.message(), AllOf(HasSubstr(cache_.path()),
                                        HasSubstr(std::string("`marcoro pull ") + name + "`")));
  }
}

TEST_F(HubCacheTest, ASnapshotWithoutConfigurationOrWeightsIsNotWhole) {
  for (const char* file : {"model.safetensors", "config.json"}) {
    fs::remove(snapshot_ / file);
    const absl::Status status = Find("org/model").status();
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_THAT(status.message(), AllOf(HasSubstr("not whole"), HasSubstr(file)));
  }
}

TEST_F(HubCacheTest, AnIndexedSnapshotIsWholeWithAllFilesOfTheIndex) {
  fs::remove(snapshot_ / "model.safetensors");
  AddFile("model.safetensors.index.json",
          R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  AddFile("one.safetensors", "1");
  EXPECT_THAT(Find("org/model").status().message(), HasSubstr("has no two.safetensors"));
  AddFile("two.safetensors", "2");
  EXPECT_TRUE(Find("org/model").ok());
}

TEST_F(HubCacheTest, ALinkToABlobThatIsGoneIsAMissingFile) {
  fs::remove(folder_ / "blobs/hash-of-model.safetensors");
  EXPECT_TRUE(absl::IsNotFound(Find("org/model").status()));
}

TEST_F(HubCacheTest, LinksOutOfTheCacheAreRefused) {
  const TemporaryFolder elsewhere;
  Write(fs::path(elsewhere.path()) / "secret", "s");
  fs::create_symlink(elsewhere.path() + "/secret", snapshot_ / "tokenizer.model");
  const absl::Status status = Find("org/model").status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("tokenizer.model"), HasSubstr("leads out")));
}

TEST_F(HubCacheTest, ASnapshotThatIsItselfALinkOutOfTheCacheIsRefused) {
  const TemporaryFolder elsewhere;
  fs::rename(snapshot_, elsewhere.path() + "/snapshot");
  fs::create_directory_symlink(elsewhere.path() + "/snapshot", snapshot_);
  EXPECT_TRUE(absl::IsInvalidArgument(Find("org/model").status()));
}

TEST_F(HubCacheTest, ARefThatHoldsNoCommitIsRefused) {
  for (const char* text : {"../../..", "", "0123"}) {
    Write(folder_ / "refs/main", text);
    EXPECT_TRUE(absl::IsInvalidArgument(Find("org/model").status())) << text;
  }
}

TEST_F(HubCacheTest, ACacheMayItselfBeReachedThroughALink) {
  const TemporaryFolder links;
  fs::create_directory_symlink(cache_.path(), links.path() + "/hub");
  EXPECT_TRUE(FindInHubCache(links.path() + "/hub", *ParseHubName("org/model")).ok());
}

TEST(FilesOfSafetensorsIndexTest, NamesEachFileOnce) {
  const TemporaryFolder folder;
  Write(folder.path() + "/index",
        R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"1.safetensors"}})");
  EXPECT_THAT(*FilesOfSafetensorsIndex(folder.path() + "/index"),
              UnorderedElementsAre("1.safetensors", "2.safetensors"));
}

TEST(FilesOfSafetensorsIndexTest, RefusesOtherFoldersAndOtherFiles) {
  const TemporaryFolder folder;
  for (const char* text :
       {"", "[]", "{}", R"({"weight_map":{}})", R"({"weight_map":{"a":1}})",
        R"({"weight_map":{"a":"../x.safetensors"}})", R"({"weight_map":{"a":"/x.safetensors"}})",
        R"({"weight_map":{"a":"config.json"}})"}) {
    Write(folder.path() + "/index", text);
    EXPECT_TRUE(absl::IsInvalidArgument(FilesOfSafetensorsIndex(folder.path() + "/index").status()))
        << text;
  }
}

TEST(FilesOfSafetensorsIndexTest, SpoiltIndexesNameFilesOfTheFolderOrNone) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/index";
  const std::string good = R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})";
  std::mt19937 random(20240607);
  for (int round = 0; round < 2000; ++round) {
    std::string text = good;
    for (int change = 0; change < 3; ++change) {
      text[random() % text.size()] = "./\\\"{}[]:,ax\n"[random() % 13];
    }
    Write(path, text);
    const auto files = FilesOfSafetensorsIndex(path);
    if (!files.ok()) continue;
    for (const std::string& file : *files) EXPECT_EQ(file.find('/'), std::string::npos) << text;
  }
}

// The variables, most specific first, each with the folder that it leads to.
TEST(HubCacheFolderTest, FollowsTheUsualVariables) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"HF_HUB_CACHE", "/place"},
      {"HF_HOME", "/place/hub"},
      {"XDG_CACHE_HOME", "/place/huggingface/hub"},
      {"HOME", "/place/.cache/huggingface/hub"}};
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"}) {
    unsetenv(name);
  }
  for (auto current = cases.rbegin(); current != cases.rend(); ++current) {
    setenv(current->first, "/place", 1);
    EXPECT_EQ(*HubCacheFolder(), current->second) << current->first;
  }
}

}  // namespace
}  // namespace marcoro
