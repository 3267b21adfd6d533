#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "coordinator/text/tokenizer.h"
#include "gtest/gtest.h"

namespace marcoro {

using Ids = std::vector<int32_t>;

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline nlohmann::json ReadJson(const std::string& path) {
  return nlohmann::json::parse(ReadFile(path));
}

inline std::string TestData(const std::string& name) {
  return std::string(MARCORO_TEST_DATA) + "/" + name;
}

inline nlohmann::json ReferenceCases() {
  return ReadJson(std::string(MARCORO_SOURCE_DIR) +
                  "/tests/coordinator/text/data/reference_cases.json");
}

inline std::unique_ptr<Tokenizer> LoadTokenizer(const std::string& directory) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(directory);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

inline Ids EncodeOrDie(const Tokenizer& tokenizer, const std::string& text,
                       const EncodeOptions& options = {},
                       const std::vector<ByteRange>& literal_ranges = {}) {
  absl::StatusOr<Ids> ids = tokenizer.Encode(text, options, literal_ranges);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : Ids();
}

// A folder that is gone when the test is over.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "marcoro_text_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << content;
  }

 private:
  std::string path_;
};

}  // namespace marcoro
