// A private folder for a running program. It goes away with its owner: at once if that ends in
// order, and otherwise, killed for example, when the next one begins.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "deploy/hub/file_lock.h"

namespace marcoro {

class ScratchFolder {
 public:
  // A new folder in marcoro-UID in $TMPDIR, else /tmp. What others have left there is removed
  // before; whether an owner lives is told by a lock in its folder, which ends with it. UNAVAILABLE
  // if nothing can be written there, or somebody else has taken the name.
  static absl::StatusOr<std::unique_ptr<ScratchFolder>> Create();
  // Removes it.
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  // Absolute. One name in it is taken: that of the lock, "lock".
  const std::string& path() const { return path_; }

 private:
  ScratchFolder(std::string path, FileLock lock) : path_(std::move(path)), lock_(std::move(lock)) {}

  const std::string path_;
  const FileLock lock_;
};

}  // namespace marcoro
