// Folders that go away with their owners, and with those owners alone.
#include "deploy/cli/scratch_folder.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/hub/temporary_folder.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ScratchFolderTest : public testing::Test {
 protected:
  ScratchFolderTest() {
    if (const char* before = getenv("TMPDIR")) before_ = before;
    setenv("TMPDIR", folder_.path().c_str(), 1);
  }
  ~ScratchFolderTest() override {
    before_.empty() ? unsetenv("TMPDIR") : setenv("TMPDIR", before_.c_str(), 1);
  }

  std::string UsersFolder() const { return absl::StrCat(folder_.path(), "/marcoro-", geteuid()); }

  // Lets another process make a folder and end without cleaning up, as a killed one does.
  std::string LeftByAnother() const {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    const pid_t pid = fork();
    if (pid == 0) {
      const auto folder = ScratchFolder::Create();
      const std::string path = folder.ok() ? (*folder)->path() : "";
      std::ofstream(path + "/config.json") << "{}";
      const bool told = write(ends[1], path.data(), path.size()) == ssize_t(path.size());
      _exit(told ? 0 : 1);
    }
    close(ends[1]);
    char path[4096];
    const ssize_t count = read(ends[0], path, sizeof(path));
    close(ends[0]);
    int status = 1;
    waitpid(pid, &status, 0);
    EXPECT_EQ(status, 0);
    return std::string(path, static_cast<size_t>(std::max<ssize_t>(count, 0)));
  }

  const TemporaryFolder folder_;
  std::string before_;
};

TEST_F(ScratchFolderTest, IsPrivateAndGoesAwayWithWhatIsInIt) {
  auto folder = ScratchFolder::Create();
  ASSERT_TRUE(folder.ok()) << folder.status();
  const std::string path = (*folder)->path();
  EXPECT_EQ(path.rfind(UsersFolder() + "/", 0), 0u) << path;
  EXPECT_EQ(fs::status(path).permissions(), fs::perms::owner_all);
  std::ofstream(path + "/file") << "text";
  folder->reset();
  EXPECT_FALSE(fs::exists(path));
}

TEST_F(ScratchFolderTest, WhatAKilledOwnerLeftIsRemovedByTheNext) {
  const std::string left = LeftByAnother();
  ASSERT_TRUE(fs::exists(left + "/config.json"));
  const auto next = ScratchFolder::Create();
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_FALSE(fs::exists(left));
  EXPECT_TRUE(fs::exists((*next)->path()));
}

TEST_F(ScratchFolderTest, WhoseOwnerLivesStays) {
  const auto first = ScratchFolder::Create();
  const auto second = ScratchFolder::Create();
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_NE((*first)->path(), (*second)->path());
  const std::string third = LeftByAnother();  // which would have removed them
  EXPECT_TRUE(fs::exists((*first)->path()));
  EXPECT_TRUE(fs::exists((*second)->path()));
  EXPECT_TRUE(fs::exists(third));
}

TEST_F(ScratchFolderTest, OtherFilesBesideThemAreLeftAlone) {
  ASSERT_TRUE(ScratchFolder::Create().ok());
  std::ofstream(UsersFolder() + "/notes") << "text";
  ASSERT_TRUE(ScratchFolder::Create().ok());
  EXPECT_TRUE(fs::exists(UsersFolder() + "/notes"));
}

TEST_F(ScratchFolderTest, ANameThatSomebodyElseHasTakenIsRefused) {
  ASSERT_EQ(mkdir(UsersFolder().c_str(), 0777), 0);
  ASSERT_EQ(chmod(UsersFolder().c_str(), 0777), 0);
  EXPECT_THAT(std::string(ScratchFolder::Create().status().message()),
              HasSubstr("no private folder of this user"));
  fs::remove(UsersFolder());
  fs::create_directory(folder_.path() + std::string("/elsewhere"));
  fs::create_directory_symlink(folder_.path() + std::string("/elsewhere"), UsersFolder());
  EXPECT_EQ(ScratchFolder::Create().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ScratchFolderTest, AFolderThatIsNotThereIsToldByName) {
  setenv("TMPDIR", "/no/such/folder", 1);
  EXPECT_EQ(ScratchFolder::Create().status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace marcoro
