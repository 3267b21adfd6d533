// What the fuzz targets share: the fuzzer's bytes as texts, and files made of them.
#pragma once

#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "kernels/check.h"

namespace marcoro {

// What a target does with one input: aborts if the code under test breaks a promise.
void FuzzOne(absl::string_view input);

// The input's first parts, which zero bytes divide; those that it lacks are empty.
inline std::vector<std::string> Parts(absl::string_view input, size_t count) {
  std::vector<std::string> parts =
      absl::StrSplit(input, absl::MaxSplits('\0', static_cast<int>(count) - 1));
  parts.resize(count);
  return parts;
}

// A folder that is gone with the process.
class InputFolder {
 public:
  InputFolder() : path_(std::filesystem::temp_directory_path() / "marcoro_fuzz_XXXXXX") {
    MARCORO_CHECK(mkdtemp(path_.data()) != nullptr);
  }
  ~InputFolder() { std::filesystem::remove_all(path_); }
  InputFolder(const InputFolder&) = delete;
  InputFolder& operator=(const InputFolder&) = delete;

  const std::string& path() const { return path_; }

  // A file of the folder becomes this text; none where the text is empty.
  void Set(const std::string& name, const std::string& text) const {
    const std::string file = path_ + "/" + name;
    if (text.empty()) {
      std::filesystem::remove(file);
    } else {
      std::ofstream(file, std::ios::binary) << text;
    }
  }

 private:
  std::string path_;
};

}  // namespace marcoro
