#include "deploy/hub/snapshot.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "deploy/hub/file_lock.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;

// What is done under the lock takes milliseconds.
constexpr absl::Duration kLockPatience = absl::Minutes(1);

absl::Status ToStatus(const std::error_code& error, const std::string& what) {
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(), what);
}

absl::StatusOr<FileLock> LockSnapshots(const HubRepositoryPaths& paths) {
  const std::string path = paths.locks + "/snapshots.lock";
  const absl::Time deadline = absl::Now() + kLockPatience;
  return FileLock::Acquire(path, [&]() -> absl::Status {
    if (absl::Now() < deadline) return absl::OkStatus();
    return absl::DeadlineExceededError(absl::StrCat(path, " is held by another download"));
  });
}

// Relative, so that a cache can be moved; the same from snapshots/COMMIT and from the folder in
// which links are made first.
std::string LinkTarget(const HubFile& file) { return "../../blobs/" + file.hash; }

absl::Status MakeLinks(const std::string& folder, const std::vector<HubFile>& files) {
  for (const HubFile& file : files) {
    std::error_code error;
    const std::string path = absl::StrCat(folder, "/", file.name);
    fs::create_symlink(LinkTarget(file), path, error);
    if (error) return ToStatus(error, absl::StrCat("cannot link ", path));
  }
  return absl::OkStatus();
}

absl::Status Rename(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::rename(from, to, error);
  return ToStatus(error, absl::StrCat("cannot write ", to));
}

absl::Status CreateFolder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  return ToStatus(error, absl::StrCat("cannot make ", folder));
}

}  // namespace

absl::StatusOr<std::string> WriteSnapshot(const HubRepositoryPaths& paths,
                                          const std::string& commit, std::vector<HubFile> files) {
  std::partition(files.begin(), files.end(),
                 [](const HubFile& file) { return file.name != "config.json"; });
  const absl::StatusOr<FileLock> lock = LockSnapshots(paths);
  if (!lock.ok()) return lock.status();
  // Under the lock, so what is there was left by a process that was killed.
  const std::string work = paths.folder + "/.incomplete";
  const std::string links = absl::StrCat(work, "/", commit);
  const std::string snapshot = paths.Snapshot(commit);
  if (absl::Status inside = CheckInsideHubCache(paths.cache, snapshot); !inside.ok()) return inside;
  std::error_code error;
  fs::remove_all(work, error);
  for (const std::string& folder : {links, paths.folder + "/snapshots"}) {
    if (absl::Status status = CreateFolder(folder); !status.ok()) return status;
  }
  absl::Status status = MakeLinks(links, files);
  if (status.ok() && !fs::exists(snapshot, error)) {
    status = Rename(links, snapshot);
  } else {
    for (const HubFile& file : files) {
      if (!status.ok()) break;
      status = Rename(absl::StrCat(links, "/", file.name), absl::StrCat(snapshot, "/", file.name));
    }
  }
  fs::remove_all(work, error);
  if (!status.ok()) return status;
  return snapshot;
}

absl::Status WriteRef(const HubRepositoryPaths& paths, const std::string& revision,
                      const std::string& commit) {
  if (IsHubCommit(revision)) return absl::OkStatus();
  const absl::StatusOr<FileLock> lock = LockSnapshots(paths);
  if (!lock.ok()) return lock.status();
  const std::string path = paths.Ref(revision);
  if (absl::Status status = CheckInsideHubCache(paths.cache, fs::path(path).parent_path());
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CreateFolder(fs::path(path).parent_path()); !status.ok()) return status;
  const std::string temporary = paths.folder + "/.ref.incomplete";
  const int descriptor =
      open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", temporary));
  const ssize_t written = write(descriptor, commit.data(), commit.size());
  const int failure = errno;
  close(descriptor);
  if (written != static_cast<ssize_t>(commit.size())) {
    return absl::ErrnoToStatus(written < 0 ? failure : ENOSPC,
                               absl::StrCat("cannot write ", temporary));
  }
  return Rename(temporary, path);
}

}  // namespace marcoro
