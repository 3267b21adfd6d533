#include "deploy/hub/blob_download.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "deploy/hub/checksum.h"
#include "deploy/hub/file_lock.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = 1 << 20;
// An attempt that brought so much was no failure in a row.
constexpr uint64_t kProgressBytes = 1 << 20;

absl::Status FileError(int code, const std::string& what, const std::string& path) {
  if (code == ENOSPC || code == EDQUOT) {
    return absl::ResourceExhaustedError(absl::StrCat(path, ": no space is left on the disk"));
  }
  return absl::ErrnoToStatus(code, absl::StrCat("cannot ", what, " ", path));
}

// Size of a regular file itself, no link; nothing if there is none.
std::optional<uint64_t> FileSize(const std::string& path) {
  struct stat status;
  if (lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
  return static_cast<uint64_t>(status.st_size);
}

// BLOB.incomplete, with the checksum of what is in it.
class IncompleteBlob : public HubClient::Sink {
 public:
  static absl::StatusOr<IncompleteBlob> Open(std::string path, const BlobDownload& download);
  ~IncompleteBlob() override {
    if (descriptor_ >= 0) close(descriptor_);
  }
  IncompleteBlob(IncompleteBlob&& other) noexcept
      : path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        download_(other.download_),
        checksum_(std::move(other.checksum_)),
        size_(other.size_) {}

  uint64_t size() const { return size_; }
  absl::Status Restart() override;
  absl::Status Write(std::string_view bytes) override;
  bool ChecksumMatches() { return checksum_.Matches(); }
  // Makes it lasting under its name.
  absl::Status Publish(const std::string& blob);

 private:
  IncompleteBlob(std::string path, int descriptor, const BlobDownload& download, Checksum checksum)
      : path_(std::move(path)),
        descriptor_(descriptor),
        download_(&download),
        checksum_(std::move(checksum)) {}
  // Takes what an earlier attempt left into the checksum.
  absl::Status TakeOver();

  std::string path_;
  int descriptor_;
  const BlobDownload* download_;
  Checksum checksum_;
  uint64_t size_ = 0;
};

absl::StatusOr<IncompleteBlob> IncompleteBlob::Open(std::string path,
                                                    const BlobDownload& download) {
  absl::StatusOr<Checksum> checksum = Checksum::Create(download.file.hash, download.file.size);
  if (!checksum.ok()) return checksum.status();
  // Not through a link, which could lead anywhere.
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor < 0) return FileError(errno, "write", path);
  IncompleteBlob blob(std::move(path), descriptor, download, *std::move(checksum));
  const std::optional<uint64_t> there = FileSize(blob.path_);
  if (!there) {
    return absl::FailedPreconditionError(absl::StrCat(blob.path_, ": is no regular file"));
  }
  const absl::Status status = *there <= download.file.size ? blob.TakeOver() : blob.Restart();
  if (!status.ok()) return status;
  return blob;
}

absl::Status IncompleteBlob::TakeOver() {
  std::vector<char> buffer(kReadBytes);
  while (true) {
    const ssize_t count =
        pread(descriptor_, buffer.data(), buffer.size(), static_cast<off_t>(size_));
    if (count < 0) return FileError(errno, "read", path_);
    if (count == 0) break;
    checksum_.Add(std::string_view(buffer.data(), static_cast<size_t>(count)));
    size_ += static_cast<uint64_t>(count);
  }
  download_->progress(size_);
  return absl::OkStatus();
}

absl::Status IncompleteBlob::Restart() {
  if (ftruncate(descriptor_, 0) != 0) return FileError(errno, "empty", path_);
  checksum_.Restart();
  size_ = 0;
  download_->progress(size_);
  return absl::OkStatus();
}

absl::Status IncompleteBlob::Write(std::string_view bytes) {
  checksum_.Add(bytes);
  while (!bytes.empty()) {
    const ssize_t count =
        pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(size_));
    if (count < 0) return FileError(errno, "write", path_);
    size_ += static_cast<uint64_t>(count);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  download_->progress(size_);
  return absl::OkStatus();
}

absl::Status IncompleteBlob::Publish(const std::string& blob) {
  if (fdatasync(descriptor_) != 0) return FileError(errno, "write", path_);
  if (rename(path_.c_str(), blob.c_str()) != 0) return FileError(errno, "rename", path_);
  return absl::OkStatus();
}

// Asks for what is missing until all is there.
absl::Status Complete(const BlobDownload& download, HubClient* client, IncompleteBlob* blob) {
  RetryPolicy policy(download.retry);
  while (blob->size() < download.file.size) {
    const uint64_t before = blob->size();
    const absl::Status status = client->Download(download.commit, download.file, before, blob);
    if (status.ok()) continue;
    if (blob->size() >= before + kProgressBytes) policy.Progressed();
    const std::optional<absl::Duration> delay = policy.Failed(status);
    if (!delay) return status;
    if (!download.wait(*delay)) return absl::CancelledError("given up");
  }
  return absl::OkStatus();
}

// Waits for another process's download, as long as it gets on.
absl::StatusOr<FileLock> LockBlob(const HubRepositoryPaths& paths, const BlobDownload& download) {
  const std::string incomplete = paths.Blob(download.file.hash) + ".incomplete";
  std::optional<uint64_t> size = FileSize(incomplete);
  absl::Time grown = absl::Now();
  const std::string path = absl::StrCat(paths.locks, "/", download.file.hash, ".lock");
  return FileLock::Acquire(path, [&]() -> absl::Status {
    if (!download.wait(absl::ZeroDuration())) return absl::CancelledError("given up");
    if (const std::optional<uint64_t> now = FileSize(incomplete); now != size) {
      size = now;
      grown = absl::Now();
    }
    if (absl::Now() - grown < download.lock_patience) return absl::OkStatus();
    return absl::DeadlineExceededError(
        absl::StrCat(path, " is held by another download, which has not got on for ",
                     absl::FormatDuration(download.lock_patience)));
  });
}

}  // namespace

uint64_t BytesInCache(const HubRepositoryPaths& paths, const HubFile& file) {
  const std::string blob = paths.Blob(file.hash);
  if (FileSize(blob) == file.size) return file.size;
  const uint64_t left = FileSize(blob + ".incomplete").value_or(0);
  return left <= file.size ? left : 0;
}

absl::Status DownloadBlob(const HubRepositoryPaths& paths, const BlobDownload& download,
                          HubClient* client) {
  const absl::StatusOr<FileLock> lock = LockBlob(paths, download);
  if (!lock.ok()) return lock.status();
  const std::string path = paths.Blob(download.file.hash);
  if (FileSize(path) == download.file.size) {
    download.progress(download.file.size);
    return absl::OkStatus();
  }
  absl::StatusOr<IncompleteBlob> blob = IncompleteBlob::Open(path + ".incomplete", download);
  if (!blob.ok()) return blob.status();
  // What an earlier attempt left may be spoilt: then once more from the beginning.
  for (const bool last : {false, true}) {
    if (absl::Status status = Complete(download, client, &*blob); !status.ok()) return status;
    if (blob->ChecksumMatches()) return blob->Publish(path);
    if (absl::Status status = blob->Restart(); !status.ok()) return status;
    if (last) break;
  }
  return absl::DataLossError(absl::StrCat(download.file.name,
                                          ": what was downloaded, twice, has not the checksum ",
                                          download.file.hash, " that the hub says"));
}

}  // namespace marcoro
