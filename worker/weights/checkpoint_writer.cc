#include "worker/weights/checkpoint_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"
#include "worker/model/text_file.h"
#include "worker/weights/sha256.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;

constexpr char kPlanName[] = ".marcoro-plan";
constexpr size_t kMaxPlanBytes = 4096;

// A folder's path without slashes at its end.
std::string Trimmed(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status SyncDirectory(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return WriteError(path, errno);
  absl::Cleanup close_directory = [descriptor] { close(descriptor); };
  return fsync(descriptor) == 0 ? absl::OkStatus() : WriteError(path, errno);
}

absl::Status WriteDescriptor(int descriptor, const std::string& path, const std::string& contents) {
  for (size_t done = 0; done < contents.size();) {
    const ssize_t count = write(descriptor, contents.data() + done, contents.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return WriteError(path, count < 0 ? errno : EIO);
    done += static_cast<size_t>(count);
  }
  return fsync(descriptor) == 0 ? absl::OkStatus() : WriteError(path, errno);
}

absl::StatusOr<std::vector<fs::path>> EntriesOf(const std::string& directory) {
  std::vector<fs::path> entries;
  std::error_code error;
  fs::directory_iterator next(directory, error);
  for (; !error && next != fs::directory_iterator(); next.increment(error)) {
    entries.push_back(next->path());
  }
  if (error) return WriteError(directory, error.value());
  return entries;
}

// What a partial folder must have been begun for to be continued.
std::string PlanText(const std::string& identity, const std::vector<CheckpointShard>& shards) {
  Sha256 hash;
  hash.Text("marcoro partial checkpoint 1");
  hash.Text(identity);
  for (const CheckpointShard& shard : shards) hash.Text(LayOutSafetensors(shard).head);
  return absl::StrCat(hash.HexDigest(), "\n");
}

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Begin(
    const CheckpointWriterOptions& options, std::vector<CheckpointShard> shards) {
  MARCORO_CHECK(!shards.empty());
  std::unique_ptr<CheckpointWriter> writer(
      new CheckpointWriter(Trimmed(options.directory), std::move(shards)));
  if (absl::Status status = writer->CheckTarget(); !status.ok()) return status;
  if (absl::Status status = writer->Lock(); !status.ok()) return status;
  if (absl::Status status = writer->ResumeOrClear(options.identity); !status.ok()) return status;
  if (absl::Status status = writer->CheckRoom(options.other_bytes); !status.ok()) return status;
  return writer;
}

CheckpointWriter::~CheckpointWriter() {
  if (owns_partial_) {
    std::error_code ignored;  // what cannot be removed stays, under a name that says what it is
    fs::remove_all(partial_, ignored);
  }
  if (lock_ >= 0) close(lock_);
}

absl::Status CheckpointWriter::CheckTarget() const {
  if (directory_.empty()) return absl::InvalidArgumentError("the folder to write has no name");
  std::error_code error;
  if (!fs::is_directory(ParentOf(directory_), error)) {
    return absl::NotFoundError(
        absl::StrCat(ParentOf(directory_), ": there is no such folder to write into"));
  }
  const fs::file_status status = fs::symlink_status(directory_, error);
  if (status.type() == fs::file_type::not_found) return absl::OkStatus();
  if (status.type() == fs::file_type::none) return WriteError(directory_, error.value());
  if (status.type() == fs::file_type::directory && fs::is_empty(directory_, error)) {
    return absl::OkStatus();
  }
  return absl::AlreadyExistsError(
      absl::StrCat(directory_, ": exists already; remove it, or name another folder"));
}

absl::Status CheckpointWriter::Lock() {
  const std::string path = absl::StrCat(partial_, "/", kPlanName);
  if (mkdir(partial_.c_str(), 0777) != 0) {
    if (errno != EEXIST) return WriteError(partial_, errno);
    std::error_code error;
    const bool is_ours = fs::exists(path, error) || fs::is_empty(partial_, error);
    if (!is_ours) {
      return absl::AlreadyExistsError(
          absl::StrCat(partial_, ": is in the way; remove it, or name another folder to write"));
    }
  }
  lock_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (lock_ < 0) return WriteError(path, errno);
  const bool locked = flock(lock_, LOCK_EX | LOCK_NB) == 0;
  // Whoever held the lock may have finished, or cleared away, the folder meanwhile.
  struct stat mine;
  struct stat current;
  const bool still_there = fstat(lock_, &mine) == 0 && stat(path.c_str(), &current) == 0 &&
                           mine.st_ino == current.st_ino && mine.st_dev == current.st_dev;
  if (!locked || !still_there) {
    return absl::AbortedError(absl::StrCat(partial_, ": another process writes this folder"));
  }
  owns_partial_ = true;
  return absl::OkStatus();
}

absl::Status CheckpointWriter::ResumeOrClear(const std::string& identity) {
  const std::string plan_path = absl::StrCat(partial_, "/", kPlanName);
  const std::string plan = PlanText(identity, shards_);
  absl::StatusOr<std::string> found = ReadSmallFile(plan_path, kMaxPlanBytes);
  const bool resume = found.ok() && *found == plan;
  std::map<std::string, size_t> shard_names;
  for (size_t i = 0; i < shards_.size(); ++i) shard_names.emplace(ShardName(i), i);
  absl::StatusOr<std::vector<fs::path>> entries = EntriesOf(partial_);
  if (!entries.ok()) return entries.status();
  for (const fs::path& entry : *entries) {
    const auto shard = shard_names.find(entry.filename().string());
    if (resume && shard != shard_names.end() && HasWholeShard(shard->second)) {
      finished_[shard->second] = true;
    } else if (entry.filename() != kPlanName) {
      std::error_code error;
      fs::remove_all(entry, error);
      if (error) return WriteError(entry.string(), error.value());
    }
  }
  if (resume) return absl::OkStatus();
  if (ftruncate(lock_, 0) != 0) return WriteError(plan_path, errno);
  return WriteDescriptor(lock_, plan_path, plan);
}

// Whether the finished file of a shard is there with the right head and length.
bool CheckpointWriter::HasWholeShard(size_t index) const {
  const SafetensorsLayout layout = LayOutSafetensors(shards_[index]);
  const std::string path = absl::StrCat(partial_, "/", ShardName(index));
  std::error_code error;
  if (fs::file_size(path, error) != layout.file_bytes || error) return false;
  std::ifstream file(path, std::ios::binary);
  std::string head(layout.head.size(), '\0');
  file.read(head.data(), static_cast<std::streamsize>(head.size()));
  return file.good() && head == layout.head;
}

absl::Status CheckpointWriter::CheckRoom(uint64_t other_bytes) const {
  uint64_t needed = other_bytes;
  for (size_t i = 0; i < shards_.size(); ++i) {
    if (!finished_[i]) needed += LayOutSafetensors(shards_[i]).file_bytes;
  }
  struct statvfs disk;
  if (statvfs(partial_.c_str(), &disk) != 0) return WriteError(partial_, errno);
  const uint64_t available = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  if (available >= needed) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(directory_, ": the disk has room for ",
                                                   available, " bytes, ", needed, " are needed"));
}

std::string CheckpointWriter::ShardName(size_t index) const {
  if (shards_.size() == 1) return "model.safetensors";
  return absl::StrFormat("model-%05d-of-%05d.safetensors", index + 1, shards_.size());
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> CheckpointWriter::OpenShard(size_t index) {
  MARCORO_CHECK(!finished_[index]);
  return SafetensorsWriter::Create(absl::StrCat(partial_, "/", ShardName(index), ".tmp"),
                                   shards_[index]);
}

absl::Status CheckpointWriter::FinishShard(size_t index, std::unique_ptr<SafetensorsWriter> file) {
  if (absl::Status status = file->Finish(); !status.ok()) return status;
  file.reset();
  const std::string path = absl::StrCat(partial_, "/", ShardName(index));
  if (rename(absl::StrCat(path, ".tmp").c_str(), path.c_str()) != 0) return WriteError(path, errno);
  finished_[index] = true;
  return SyncDirectory(partial_);
}

absl::Status CheckpointWriter::AddFile(const std::string& name, const std::string& contents) {
  MARCORO_CHECK(!name.empty() && name.find('/') == std::string::npos);
  const std::string path = absl::StrCat(partial_, "/", name);
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return WriteError(path, errno);
  absl::Cleanup close_file = [descriptor] { close(descriptor); };
  return WriteDescriptor(descriptor, path, contents);
}

std::string CheckpointWriter::IndexJson() const {
  uint64_t total = 0;
  nlohmann::ordered_json files = nlohmann::ordered_json::object();
  for (size_t i = 0; i < shards_.size(); ++i) {
    for (const OutputTensor& tensor : shards_[i]) {
      files[tensor.name] = ShardName(i);
      total += tensor.bytes();
    }
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}},
                                        {"weight_map", std::move(files)}};
  return index.dump(2) + "\n";
}

absl::Status CheckpointWriter::Commit() {
  for (const bool finished : finished_) MARCORO_CHECK(finished);
  if (shards_.size() > 1) {
    absl::Status status = AddFile("model.safetensors.index.json", IndexJson());
    if (!status.ok()) return status;
  }
  if (absl::Status status = SyncDirectory(partial_); !status.ok()) return status;
  // Takes the place of an empty folder too, but of nothing else.
  if (rename(partial_.c_str(), directory_.c_str()) != 0) {
    const int error = errno;
    absl::Status occupied = CheckTarget();
    return occupied.ok() ? WriteError(directory_, error) : occupied;
  }
  owns_partial_ = false;
  unlink(absl::StrCat(directory_, "/", kPlanName).c_str());
  return SyncDirectory(ParentOf(directory_));
}

}  // namespace marcoro
