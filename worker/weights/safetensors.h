// A checked reader of safetensors files. Nothing a file says is believed before it is checked, and
// no tensor data is touched until it is asked for.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

// Longest header that is read.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// One tensor of a file: a range of its data section.
struct SafetensorsEntry {
  TensorInfo info;      // origin is the file's path
  uint64_t offset = 0;  // from the start of the file
};

// Bits of one element of a dtype of the format; 0 for an unknown name.
int SafetensorsDTypeBits(std::string_view dtype);

// Checks the text of a header against a data section of data_bytes bytes that begins at
// data_offset: JSON of the format's shape, known dtypes, shape × dtype equal to the byte range,
// ranges contiguous, in order, and covering the data. Returns the entries by offset.
// INVALID_ARGUMENT naming the file (and tensor) otherwise.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view header,
                                                                     uint64_t data_offset,
                                                                     uint64_t data_bytes,
                                                                     const std::string& file);

// An open file. Reads may run concurrently.
class SafetensorsFile {
 public:
  // NOT_FOUND if there is no such file, INVALID_ARGUMENT for one that is not whole and valid.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;
  ~SafetensorsFile();

  const std::string& path() const { return path_; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }

  // Reads `bytes` bytes of the tensor from byte `first` on. The range lies inside the tensor.
  // DATA_LOSS if the file has become shorter or cannot be read.
  absl::Status Read(const SafetensorsEntry& entry, uint64_t first, uint64_t bytes, void* out) const;

  // DATA_LOSS if the file was written to since it was opened: what was read may be of two contents.
  // (One that took its name is another file, and makes no difference.)
  absl::Status CheckUnchanged() const;

  // Tells the kernel that a range of the tensor is read soon. Of a long range it reads no more at
  // once than the device's read-ahead.
  void Prefetch(const SafetensorsEntry& entry, uint64_t first, uint64_t bytes) const;

  // Tells the kernel that its page cache need not hold the tensor any longer.
  void Discard(const SafetensorsEntry& entry) const;

 private:
  SafetensorsFile(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}

  const std::string path_;
  const int descriptor_;
  int64_t bytes_ = 0;  // of the file, and when it was last written to, as it was opened
  timespec written_ = {};
  std::vector<SafetensorsEntry> entries_;
};

}  // namespace marcoro
