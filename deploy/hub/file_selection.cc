#include "deploy/hub/file_selection.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace marcoro {
namespace {

constexpr const char* kSmallFiles[] = {"generation_config.json",
                                       "hf_quant_config.json",
                                       "tokenizer.model",
                                       "tokenizer.json",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "chat_template.jinja",
                                       "chat_template.json",
                                       "mergekit_config.yml",
                                       kIndexFile,
                                       "LICENSE",
                                       "LICENSE.txt",
                                       "LICENSE.md"};

bool IsSmallFile(const std::string& file) {
  if (absl::StartsWith(file, "config") && absl::EndsWith(file, ".json")) {
    return !absl::StrContains(file, '/');
  }
  return std::any_of(std::begin(kSmallFiles), std::end(kSmallFiles),
                     [&file](const char* name) { return file == name; });
}

bool Has(const std::vector<std::string>& files, absl::string_view file) {
  return std::find(files.begin(), files.end(), file) != files.end();
}

// What the repository has instead, for the message.
std::string OtherWeights(const std::vector<std::string>& files) {
  for (const char* ending : {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack"}) {
    for (const std::string& file : files) {
      if (absl::EndsWith(file, ending)) return absl::StrCat(" (but ", file, ")");
    }
  }
  return "";
}

}  // namespace

std::vector<std::string> SelectSmallFiles(const std::vector<std::string>& files) {
  std::vector<std::string> selected;
  for (const std::string& file : files) {
    if (IsSmallFile(file)) selected.push_back(file);
  }
  return selected;
}

absl::StatusOr<std::vector<std::string>> SelectWeights(const std::vector<std::string>& files,
                                                       const std::set<std::string>& indexed) {
  if (Has(files, kWeightsFile)) return std::vector<std::string>{kWeightsFile};
  if (indexed.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("has neither ", kWeightsFile, " nor ", kIndexFile, OtherWeights(files)));
  }
  for (const std::string& file : indexed) {
    if (Has(files, file)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(kIndexFile, " names ", file, ", which the repository does not have"));
  }
  return std::vector<std::string>(indexed.begin(), indexed.end());
}

}  // namespace marcoro
