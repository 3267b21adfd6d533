// The config.json of a merged model.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "worker/model/config.h"

namespace marcoro {

struct MergedConfig {
  std::string json;    // the file's text
  ModelConfig config;  // as it is read from it, and from the tokenizer's generation_config.json
};

struct MergedShape {
  int32_t layers = 0;
  int32_t vocabulary_size = 0;
  bool tied_embeddings = false;
  std::string dtype;  // as PyTorch calls it; empty: as main_directory says
};

// main_directory/config.json, with what the merge makes of it, and the ids of special tokens as
// tokenizer_directory has them: they are ids of its vocabulary. INVALID_ARGUMENT if an id lies
// beyond the merged vocabulary.
absl::StatusOr<MergedConfig> MergeConfigs(const std::string& main_directory,
                                          const std::string& tokenizer_directory,
                                          const MergedShape& shape);

}  // namespace marcoro
