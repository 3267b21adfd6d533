#include "deploy/cli/scratch_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "run-";
constexpr char kLock[] = "/lock";
constexpr int kMostLeft = 1000;  // folders that are looked at
constexpr absl::Duration kLongestWait = absl::Seconds(10);

absl::Status CannotUse(const std::string& path, const std::string& why) {
  return absl::UnavailableError(absl::StrCat("cannot use the temporary folder ", path, ": ", why));
}

// The folder of all of this user's; nobody else may have put something there.
absl::StatusOr<std::string> UsersFolder() {
  std::error_code error;
  fs::path temporary = fs::temp_directory_path(error);
  if (!error) temporary = fs::absolute(temporary, error);
  if (error) return CannotUse("of $TMPDIR", error.message());
  const std::string path = temporary / absl::StrCat("marcoro-", geteuid());
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return CannotUse(path, std::strerror(errno));
  }
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) return CannotUse(path, std::strerror(errno));
  const bool writable_by_others = (status.st_mode & (S_IWGRP | S_IWOTH)) != 0;
  if (!S_ISDIR(status.st_mode) || status.st_uid != geteuid() || writable_by_others) {
    return CannotUse(path, "it is no private folder of this user");
  }
  return path;
}

// Removes the folders whose owners are gone. The caller holds the lock of all of them, without
// which nobody makes one: none is seen before its owner has locked it.
void RemoveLeft(const std::string& folder) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  std::vector<std::string> found;
  for (int i = 0; i < kMostLeft && !error && entries != fs::directory_iterator(); ++i) {
    const std::string name = entries->path().filename();
    if (absl::StartsWith(name, kPrefix)) found.push_back(entries->path());
    entries.increment(error);
  }
  for (const std::string& path : found) {
    const absl::StatusOr<FileLock> lock = FileLock::Acquire(
        absl::StrCat(path, kLock), [] { return absl::UnavailableError("its owner lives"); });
    if (lock.ok()) fs::remove_all(path, error);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ScratchFolder>> ScratchFolder::Create() {
  const absl::StatusOr<std::string> folder = UsersFolder();
  if (!folder.ok()) return folder.status();
  const absl::Time begin = absl::Now();
  const absl::StatusOr<FileLock> all =
      FileLock::Acquire(absl::StrCat(*folder, kLock), [&]() -> absl::Status {
        if (absl::Now() - begin < kLongestWait) return absl::OkStatus();
        return CannotUse(*folder, "another process keeps it locked");
      });
  if (!all.ok()) return all.status();
  RemoveLeft(*folder);
  std::string path = absl::StrCat(*folder, "/", kPrefix, "XXXXXX");
  if (mkdtemp(path.data()) == nullptr) return CannotUse(path, std::strerror(errno));
  absl::StatusOr<FileLock> lock =
      FileLock::Acquire(absl::StrCat(path, kLock), [&] { return CannotUse(path, "it is locked"); });
  if (!lock.ok()) return lock.status();
  return std::unique_ptr<ScratchFolder>(new ScratchFolder(std::move(path), *std::move(lock)));
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace marcoro
