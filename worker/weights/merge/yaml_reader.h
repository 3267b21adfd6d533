// Checked access to a YAML document of a known shape.
#pragma once

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/weights/merge/source_text.h"

namespace marcoro {

// The one document of a file's text. INVALID_ARGUMENT, naming file and place, if the text is not
// valid UTF-8 or YAML, is nested deeper than any sane file, or holds no or several documents.
absl::StatusOr<YAML::Node> ParseYaml(const std::string& text, const std::string& file);

// The first failure is kept; what is read after it are harmless defaults. It also bounds how many
// nodes are looked at, since aliases make a short file a long document.
class YamlReader {
 public:
  explicit YamlReader(std::string file) : file_(std::move(file)) {}

  struct Entry {
    std::string key;
    SourcePosition position;
    YAML::Node value;
  };

  const absl::Status& status() const { return status_; }
  void Fail(SourcePosition position, absl::string_view what);

  static SourcePosition PositionOf(const YAML::Node& node);

  // Entries of a mapping in the file's order: plain keys, each once. Values that are null are left
  // out, as if the key were absent. `what` names the mapping in messages.
  std::vector<Entry> Mapping(const YAML::Node& node, std::string_view what);
  // The same, and every key is one of `known`.
  std::vector<Entry> Mapping(const YAML::Node& node, std::string_view what,
                             const std::vector<std::string_view>& known);

  // 1 to `most` items.
  std::vector<YAML::Node> List(const YAML::Node& node, std::string_view what, size_t most);

  // Not empty, at most 4096 bytes unless another limit is given, no NUL.
  std::string Text(const YAML::Node& node, std::string_view what, size_t most = 4096);

  uint64_t Integer(const YAML::Node& node, std::string_view what, uint64_t most);

  // A finite number; true and false, as YAML 1.1 writes them, are 1 and 0.
  double Number(const YAML::Node& node, std::string_view what);
  static bool IsBoolean(const YAML::Node& node);

 private:
  void Count(const YAML::Node& node);

  const std::string file_;
  absl::Status status_;
  size_t nodes_ = 0;
};

}  // namespace marcoro
