#include "worker/weights/checkpoint_source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/worker/weights/checkpoint_files.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using testing::ReadTensors;
using testing::StoredTensors;
using testing::TempFolder;
using testing::TestData;
using testing::WriteFile;
using testing::WriteTensors;

void ExpectHolds(CheckpointSource& source, const StoredTensors& tensors) {
  EXPECT_EQ(source.Tensors().size(), tensors.size());
  for (const auto& [name, stored] : tensors) {
    const TensorInfo* info = source.Find(name);
    ASSERT_NE(info, nullptr) << name;
    EXPECT_EQ(info->shape, stored.shape);
    EXPECT_EQ(info->dtype, stored.dtype);
    std::vector<float> rows(static_cast<size_t>(info->rows() * info->columns()));
    const int64_t middle = info->rows() / 2;
    ASSERT_TRUE(source.ReadRows(*info, 0, middle, rows.data()).ok());
    ASSERT_TRUE(
        source
            .ReadRows(*info, middle, info->rows() - middle, rows.data() + middle * info->columns())
            .ok());
    EXPECT_EQ(rows, stored.Floats()) << name;
  }
}

class Checkpoints : public ::testing::TestWithParam<const char*> {};

// BF16 in one file, F16 in three, F32 in one.
TEST_P(Checkpoints, RowsAreTheStoredNumbers) {
  auto source = CheckpointSource::Open(TestData(GetParam()));
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectHolds(**source, ReadTensors(TestData(GetParam())));
}

INSTANTIATE_TEST_SUITE_P(All, Checkpoints, ::testing::Values("tiny", "small", "window"));

TEST(CheckpointSource, FollowsSymlinksAsHubCachesMakeThem) {
  TempFolder folder;
  std::filesystem::create_directories(folder.File("blobs"));
  std::filesystem::create_directories(folder.File("snapshots/main"));
  std::filesystem::copy_file(TestData("tiny/model.safetensors"), folder.File("blobs/abc"));
  std::filesystem::create_symlink("../../blobs/abc",
                                  folder.File("snapshots/main/model.safetensors"));
  auto source = CheckpointSource::Open(folder.File("snapshots/main"));
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectHolds(**source, ReadTensors(TestData("tiny")));
}

TEST(CheckpointSource, ReadsRowsLongerThanItsBuffer) {
  TempFolder folder;
  std::string bytes;
  for (int i = 0; i < 2 * 50'001; ++i) {
    bytes.push_back(static_cast<char>(i * 7));
    bytes.push_back('\x3f');
  }
  const StoredTensors tensors = {{"w", {"BF16", {2, 50'001}, bytes}}};
  WriteTensors(folder.File("model.safetensors"), tensors);
  auto source = CheckpointSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectHolds(**source, tensors);
}

// Pages of a file that the page cache holds.
size_t CachedPages(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const size_t bytes = std::filesystem::file_size(path);
  void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
  std::vector<unsigned char> resident((bytes + 4095) / 4096);
  EXPECT_EQ(mincore(mapped, bytes, resident.data()), 0);
  munmap(mapped, bytes);
  close(file);
  return static_cast<size_t>(std::count_if(resident.begin(), resident.end(),
                                           [](unsigned char page) { return (page & 1) != 0; }));
}

// File systems that are memory keep their pages: the test asks for as much as the kernel gives.
size_t CachedPagesAfterDontNeed(const std::string& path, off_t first, off_t bytes) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(posix_fadvise(file, first, bytes, POSIX_FADV_DONTNEED), 0);
  close(file);
  return CachedPages(path);
}

// Makes sure that pages can be given up: none waits to be written.
void Sync(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(fsync(file), 0);
  close(file);
}

// Tensors are larger than the pieces in which a page cache holds a file (2 MiB).
TEST(CheckpointSource, DiscardsATensorFromThePageCacheAndReadsItAgain) {
  constexpr int64_t kBytes = 16 << 20;
  TempFolder folder;
  const std::string path = folder.File("model.safetensors");
  const StoredTensors tensors = {{"a", {"BF16", {2048, 4096}, std::string(kBytes, '\x3e')}},
                                 {"b", {"BF16", {2048, 4096}, std::string(kBytes, '\x3f')}}};
  WriteTensors(path, tensors);
  Sync(path);
  auto source = CheckpointSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->StoredBytes(), 2u * kBytes);
  (*source)->Discard(*(*source)->Find("b"));
  const size_t left = CachedPages(path);
  EXPECT_GE(left, kBytes / 4096);  // a stays
  const off_t begin_of_b = static_cast<off_t>(std::filesystem::file_size(path)) - kBytes;
  EXPECT_EQ(left, CachedPagesAfterDontNeed(path, begin_of_b, kBytes)) << "more could be given up";
  ExpectHolds(**source, tensors);
}

// Larger than what the kernel reads ahead at once (128 KiB to 8 MiB, by the device).
TEST(CheckpointSource, PrefetchesAllRowsThatItIsAskedFor) {
  constexpr int64_t kBytes = 32 << 20;
  TempFolder folder;
  const std::string path = folder.File("model.safetensors");
  WriteTensors(path, {{"a", {"BF16", {4096, 4096}, std::string(kBytes, '\x3e')}}});
  Sync(path);
  auto source = CheckpointSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status();
  CachedPagesAfterDontNeed(path, 0, 0);
  (*source)->Prefetch(*(*source)->Find("a"), 0, 4096);
  const size_t pages = kBytes / 4096;
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (CachedPages(path) < pages && absl::Now() < deadline) std::this_thread::yield();
  EXPECT_GE(CachedPages(path), pages);
}

// For AddressSanitizer and ThreadSanitizer: nothing reads from files that are closed.
TEST(CheckpointSource, MayBeClosedWhileItPrefetches) {
  TempFolder folder;
  WriteTensors(folder.File("model.safetensors"),
               {{"a", {"BF16", {4096, 1024}, std::string(8 << 20, '\x3e')}}});
  auto source = CheckpointSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status();
  for (size_t i = 0; i < 2 * ReadAhead::kMostRanges; ++i) {
    (*source)->Prefetch(*(*source)->Find("a"), 0, 4096);
  }
  source->reset();
}

TEST(CheckpointSource, TypesItCannotReadAreNamed) {
  TempFolder folder;
  WriteTensors(folder.File("model.safetensors"), {{"ids", {"I64", {1}, std::string(8, '\0')}}});
  auto source = CheckpointSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status();
  float out = 0;
  const absl::Status status = (*source)->ReadRows(*(*source)->Find("ids"), 0, 1, &out);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors: tensor ids: dtype I64"));
}

TEST(CheckpointSource, FolderWithoutWeightsIsNotFound) {
  TempFolder folder;
  const absl::Status status = CheckpointSource::Open(folder.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
  EXPECT_EQ(CheckpointSource::Open(folder.File("none")).status().code(),
            absl::StatusCode::kNotFound);
}

class Indexed : public ::testing::Test {
 protected:
  Indexed() {
    WriteTensors(folder_.File("a.safetensors"), {{"one", {"F32", {1}, std::string(4, '\0')}}});
    WriteTensors(folder_.File("b.safetensors"), {{"two", {"F32", {1}, std::string(4, '\1')}}});
  }

  absl::StatusOr<std::unique_ptr<CheckpointSource>> Open(const std::string& index) {
    WriteFile(folder_.File("model.safetensors.index.json"), index);
    return CheckpointSource::Open(folder_.path());
  }

  void ExpectRefused(const std::string& index, const std::string& what) {
    const absl::Status status = Open(index).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << index;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors.index.json"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
  }

  TempFolder folder_;
};

TEST_F(Indexed, NeedsNoTotalSize) {
  auto source = Open(R"({"weight_map":{"one":"a.safetensors","two":"b.safetensors"}})");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_NE((*source)->Find("one"), nullptr);
  EXPECT_NE((*source)->Find("two"), nullptr);
}

TEST_F(Indexed, WhatItDoesNotListIsNotThere) {
  auto source = Open(R"({"metadata":{"total_size":4},"weight_map":{"one":"a.safetensors"}})");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->Find("two"), nullptr);
}

TEST_F(Indexed, MissingFileIsNamed) {
  ExpectRefused(R"({"weight_map":{"one":"c.safetensors"}})", "c.safetensors");
}

TEST_F(Indexed, TensorInTheWrongFileIsNamed) {
  ExpectRefused(R"({"weight_map":{"one":"b.safetensors"}})",
                "says that b.safetensors holds tensor one");
}

TEST_F(Indexed, BrokenFileIsNamed) {
  WriteFile(folder_.File("a.safetensors"), "broken");
  ExpectRefused(R"({"weight_map":{"one":"a.safetensors"}})", "a.safetensors");
}

TEST_F(Indexed, FilesElsewhereAreRefused) {
  ExpectRefused(R"({"weight_map":{"one":"../a.safetensors"}})", "same folder");
  ExpectRefused(R"({"weight_map":{"one":"/etc/passwd"}})", "same folder");
  ExpectRefused(R"({"weight_map":{"one":".."}})", "same folder");
  ExpectRefused(R"({"weight_map":{"one":""}})", "same folder");
  ExpectRefused(R"({"weight_map":{"one":7}})", "same folder");
}

TEST_F(Indexed, WhatIsNoIndexIsRefused) {
  for (const char* text : {"", "[]", "{", "{}", R"({"weight_map":[]})", R"({"weight_map":"x"})"}) {
    ExpectRefused(text, "weight_map");
  }
}

}  // namespace
}  // namespace marcoro
