// A lock between processes, on a file. The kernel lets go of it when its holder ends, however that
// happens.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace marcoro {

class FileLock {
 public:
  // Waits for the lock of that file, which is created with its folders. While another holds it,
  // keep_waiting is called some times a second; an error of it ends the wait.
  static absl::StatusOr<FileLock> Acquire(const std::string& path,
                                          const std::function<absl::Status()>& keep_waiting);
  ~FileLock();
  FileLock(FileLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}

  int descriptor_;
};

}  // namespace marcoro
