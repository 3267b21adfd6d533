#include "worker/weights/checkpoint_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/worker/weights/checkpoint_files.h"
#include "worker/weights/checkpoint_source.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ReadFile;
using testing::ReadTensors;
using testing::TempFolder;
using ::testing::UnorderedElementsAre;
using testing::WriteFile;

const std::vector<CheckpointShard> kThree = {
    {{"a", "BF16", {2, 3}}}, {{"b", "F32", {4}}, {"c", "F8_E4M3", {5}}}, {{"d", "BF16", {1}}}};

std::vector<std::string> Names(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  return names;
}

class CheckpointWriterTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<CheckpointWriter>> Begin(
      const std::vector<CheckpointShard>& shards = kThree, const std::string& identity = "one") {
    return CheckpointWriter::Begin({.directory = out_, .identity = identity}, shards);
  }

  std::unique_ptr<CheckpointWriter> BeginOrDie(
      const std::vector<CheckpointShard>& shards = kThree) {
    auto writer = Begin(shards);
    EXPECT_TRUE(writer.ok()) << writer.status();
    return *std::move(writer);
  }

  // Fills every tensor of the shard with that letter.
  void WriteShard(CheckpointWriter& writer, size_t index, char letter) {
    auto file = writer.OpenShard(index);
    ASSERT_TRUE(file.ok()) << file.status();
    for (size_t i = 0; i < writer.shard(index).size(); ++i) {
      const std::string contents(writer.shard(index)[i].bytes(), letter);
      ASSERT_TRUE((*file)->Write(i, 0, contents.data(), contents.size()).ok());
    }
    ASSERT_TRUE(writer.FinishShard(index, *std::move(file)).ok());
  }

  // What a killed process leaves when it has finished the first shard and begun the second: a copy
  // made before the writer clears its own away.
  void LeaveKilledRun() {
    const std::string copy = folder_.File("copy");
    {
      auto writer = BeginOrDie();
      WriteShard(*writer, 0, 'x');
      auto begun = writer->OpenShard(1);
      ASSERT_TRUE(begun.ok()) << begun.status();
      fs::copy(partial_, copy, fs::copy_options::recursive);
    }
    fs::rename(copy, partial_);
  }

  TempFolder folder_;
  const std::string out_ = folder_.File("out");
  const std::string partial_ = out_ + ".partial";
};

TEST_F(CheckpointWriterTest, OneShardIsOneFileWithoutIndex) {
  auto writer = BeginOrDie({{{"a", "BF16", {2}}}});
  WriteShard(*writer, 0, 'x');
  ASSERT_TRUE(writer->AddFile("config.json", "{}").ok());
  EXPECT_FALSE(fs::exists(out_));
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_THAT(Names(out_), UnorderedElementsAre("model.safetensors", "config.json"));
  EXPECT_FALSE(fs::exists(partial_));
}

TEST_F(CheckpointWriterTest, SeveralShardsHaveAnIndex) {
  auto writer = BeginOrDie();
  for (size_t i = 0; i < 3; ++i) WriteShard(*writer, i, 'x');
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_THAT(
      Names(out_),
      UnorderedElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                           "model-00003-of-00003.safetensors", "model.safetensors.index.json"));
  const auto index = nlohmann::json::parse(ReadFile(out_ + "/model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 12 + 16 + 5 + 2);
  EXPECT_EQ(index["weight_map"]["c"], "model-00002-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"].size(), 4u);
  auto source = CheckpointSource::Open(out_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->Tensors().size(), 4u);
}

TEST_F(CheckpointWriterTest, WithoutCommitNothingIsLeft) {
  {
    auto writer = BeginOrDie();
    WriteShard(*writer, 0, 'x');
    EXPECT_TRUE(fs::exists(partial_));
  }
  EXPECT_FALSE(fs::exists(partial_));
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(CheckpointWriterTest, AKilledRunGoesOnFromItsFinishedShards) {
  LeaveKilledRun();
  auto writer = BeginOrDie();
  EXPECT_TRUE(writer->IsFinished(0));
  EXPECT_FALSE(writer->IsFinished(1));
  EXPECT_FALSE(writer->IsFinished(2));
  WriteShard(*writer, 1, 'y');
  WriteShard(*writer, 2, 'y');
  ASSERT_TRUE(writer->Commit().ok());
  const auto tensors = ReadTensors(out_);
  EXPECT_EQ(tensors.at("a").bytes, std::string(12, 'x'));
  EXPECT_EQ(tensors.at("b").bytes, std::string(16, 'y'));
  EXPECT_EQ(Names(out_).size(), 4u);  // nothing of the killed run's beginnings
}

TEST_F(CheckpointWriterTest, AnotherIdentityBeginsAnew) {
  LeaveKilledRun();
  auto writer = Begin(kThree, "two");
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (size_t i = 0; i < 3; ++i) EXPECT_FALSE((*writer)->IsFinished(i));
  EXPECT_THAT(Names(partial_), ElementsAre(".marcoro-plan"));
}

TEST_F(CheckpointWriterTest, OtherShardsBeginAnew) {
  LeaveKilledRun();
  std::vector<CheckpointShard> shards = kThree;
  shards[2][0].shape = {2};
  auto writer = BeginOrDie(shards);
  EXPECT_FALSE(writer->IsFinished(0));
}

TEST_F(CheckpointWriterTest, AShardThatIsNotWholeIsWrittenAgain) {
  LeaveKilledRun();
  fs::resize_file(partial_ + "/model-00001-of-00003.safetensors", 100);
  EXPECT_FALSE(BeginOrDie()->IsFinished(0));
}

TEST_F(CheckpointWriterTest, AShardWithAnotherHeadIsWrittenAgain) {
  LeaveKilledRun();
  const std::string path = partial_ + "/model-00001-of-00003.safetensors";
  std::string file = ReadFile(path);
  file[20] ^= 1;
  WriteFile(path, file);
  EXPECT_FALSE(BeginOrDie()->IsFinished(0));
}

TEST_F(CheckpointWriterTest, TwoWritersOfOneFolderAreRefused) {
  auto first = BeginOrDie();
  WriteShard(*first, 0, 'x');
  const absl::Status second = Begin().status();
  EXPECT_EQ(second.code(), absl::StatusCode::kAborted) << second;
  EXPECT_THAT(std::string(second.message()), HasSubstr("another process"));
  WriteShard(*first, 1, 'x');  // the refused one has touched nothing
  WriteShard(*first, 2, 'x');
  EXPECT_TRUE(first->Commit().ok());
}

TEST_F(CheckpointWriterTest, AnEmptyFolderMayBeThere) {
  fs::create_directory(out_);
  auto writer = BeginOrDie();
  for (size_t i = 0; i < 3; ++i) WriteShard(*writer, i, 'x');
  EXPECT_TRUE(writer->Commit().ok());
  EXPECT_EQ(Names(out_).size(), 4u);
}

TEST_F(CheckpointWriterTest, WhateverElseIsThereStays) {
  fs::create_directory(out_);
  WriteFile(out_ + "/precious", "data");
  EXPECT_EQ(Begin().status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadFile(out_ + "/precious"), "data");
  fs::remove_all(out_);
  WriteFile(out_, "a file");
  EXPECT_EQ(Begin().status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadFile(out_), "a file");
  EXPECT_FALSE(fs::exists(partial_));
}

TEST_F(CheckpointWriterTest, WhatComesInBetweenStays) {
  auto writer = BeginOrDie({{{"a", "BF16", {2}}}});
  WriteShard(*writer, 0, 'x');
  fs::create_directory(out_);
  WriteFile(out_ + "/precious", "data");
  EXPECT_EQ(writer->Commit().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadFile(out_ + "/precious"), "data");
}

TEST_F(CheckpointWriterTest, APartialFolderThatIsNotOursStays) {
  fs::create_directory(partial_);
  WriteFile(partial_ + "/precious", "data");
  const absl::Status status = Begin().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(partial_));
  EXPECT_EQ(ReadFile(partial_ + "/precious"), "data");
}

TEST_F(CheckpointWriterTest, AMissingParentIsNamed) {
  const absl::Status status =
      CheckpointWriter::Begin({.directory = folder_.File("no/out"), .identity = ""}, kThree)
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.File("no")));
}

TEST_F(CheckpointWriterTest, NamesThatAFolderCannotHaveAreRefusedAtOnce) {
  for (const std::string& directory : {std::string(), folder_.File(std::string(300, 'a'))}) {
    const absl::Status status =
        CheckpointWriter::Begin({.directory = directory, .identity = ""}, kThree).status();
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.code(), absl::StatusCode::kAlreadyExists) << status;
  }
  EXPECT_FALSE(fs::exists(".partial"));
}

TEST_F(CheckpointWriterTest, ADiskWithoutRoomIsToldBeforeAnythingIsWritten) {
  const absl::Status status = Begin({{{"a", "F32", {1 << 30, 1 << 28}}}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  // 2^60 bytes of data and a head.
  EXPECT_THAT(std::string(status.message()), HasSubstr("11529215046068"));
  EXPECT_FALSE(fs::exists(partial_));
}

TEST_F(CheckpointWriterTest, SlashesAtTheEndMakeNoDifference) {
  auto writer =
      CheckpointWriter::Begin({.directory = out_ + "//", .identity = ""}, {{{"a", "BF16", {2}}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  WriteShard(**writer, 0, 'x');
  EXPECT_TRUE((*writer)->Commit().ok());
  EXPECT_TRUE(fs::exists(out_ + "/model.safetensors"));
}

}  // namespace
}  // namespace marcoro
