// Writes safetensors files whose tensors come in any order and piece by piece.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace marcoro {

// A tensor to be written.
struct OutputTensor {
  std::string name;
  std::string dtype;  // safetensors' name
  std::vector<int64_t> shape;

  uint64_t bytes() const;
};

// Where everything lies in a file.
struct SafetensorsLayout {
  std::string head;               // the file's first bytes: the header's length and the header
  std::vector<uint64_t> offsets;  // of each tensor as given, from the start of the file
  uint64_t file_bytes = 0;
};

// The file for these tensors, with {"format": "pt"} as its metadata. In it types with larger
// elements come first, so that every tensor is aligned to its elements; some readers need that.
SafetensorsLayout LayOutSafetensors(const std::vector<OutputTensor>& tensors);

class SafetensorsWriter {
 public:
  // Creates the file, or empties it, and writes its head. Errors are those of WriteError.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, const std::vector<OutputTensor>& tensors);

  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  ~SafetensorsWriter();

  // Writes bytes [first, first + bytes) of the tensor of that index. May run concurrently.
  absl::Status Write(size_t tensor, uint64_t first, const void* data, uint64_t bytes);

  // After everything is written: to the disk with it.
  absl::Status Finish();

 private:
  SafetensorsWriter(std::string path, int descriptor)
      : path_(std::move(path)), descriptor_(descriptor) {}

  const std::string path_;
  const int descriptor_;
  std::vector<OutputTensor> tensors_;
  SafetensorsLayout layout_;
};

// A failure to write a file as a status: RESOURCE_EXHAUSTED for a full disk, a quota or a limit on
// file sizes, UNAVAILABLE otherwise.
absl::Status WriteError(const std::string& path, int error);

}  // namespace marcoro
