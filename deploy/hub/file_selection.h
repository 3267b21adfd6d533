// Which files of a repository Marcoro has a use for.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace marcoro {

inline constexpr char kWeightsFile[] = "model.safetensors";
inline constexpr char kIndexFile[] = "model.safetensors.index.json";

// Configuration, tokenizer files, the weights' index and the license, of those in the repository's
// top folder.
std::vector<std::string> SelectSmallFiles(const std::vector<std::string>& files);

// The weights: model.safetensors, else every file that the index names (`indexed`; empty if there
// is no index). Not the same weights once more in another form, such as consolidated.safetensors,
// *.bin or *.gguf. FAILED_PRECONDITION if there are none, or an indexed one is not there.
absl::StatusOr<std::vector<std::string>> SelectWeights(const std::vector<std::string>& files,
                                                       const std::set<std::string>& indexed);

}  // namespace marcoro
