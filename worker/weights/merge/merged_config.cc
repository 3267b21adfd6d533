#include "worker/weights/merge/merged_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "worker/model/json_nesting.h"
#include "worker/model/text_file.h"

namespace marcoro {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxConfigBytes = 4u << 20;

absl::StatusOr<ordered_json> ReadConfig(const std::string& directory) {
  const std::string file = absl::StrCat(directory, "/config.json");
  absl::StatusOr<std::string> text = ReadSmallFile(file, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  if (absl::Status status = CheckJsonNesting(*text, file); !status.ok()) return status;
  ordered_json root = ordered_json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": not a JSON object"));
  }
  return root;
}

void SetShape(const MergedShape& shape, ordered_json& config) {
  // FP8 parents are dequantized: the merge holds plain numbers.
  for (const char* key : {"quantization_config", "compression_config"}) config.erase(key);
  if (config["num_hidden_layers"] != shape.layers) config.erase("layer_types");  // one per layer
  config["num_hidden_layers"] = shape.layers;
  config["vocab_size"] = shape.vocabulary_size;
  config["tie_word_embeddings"] = shape.tied_embeddings;
  if (shape.dtype.empty()) return;
  if (config.contains("dtype")) config["dtype"] = shape.dtype;  // as newer writers call it
  config["torch_dtype"] = shape.dtype;
}

absl::Status CheckTokenIds(const ModelConfig& config, const std::string& tokenizer_directory) {
  int32_t largest = config.bos_token_id;
  for (const int32_t id : config.eos_token_ids) largest = std::max(largest, id);
  if (largest < config.vocabulary_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(tokenizer_directory, ": special token ", largest,
                                                 " lies beyond the merged vocabulary of ",
                                                 config.vocabulary_size));
}

}  // namespace

absl::StatusOr<MergedConfig> MergeConfigs(const std::string& main_directory,
                                          const std::string& tokenizer_directory,
                                          const MergedShape& shape) {
  absl::StatusOr<ordered_json> config = ReadConfig(main_directory);
  if (!config.ok()) return config.status();
  absl::StatusOr<ordered_json> tokenizer = ReadConfig(tokenizer_directory);
  if (!tokenizer.ok()) return tokenizer.status();
  absl::StatusOr<ModelConfig> tokenizer_config = LoadModelConfig(tokenizer_directory);
  if (!tokenizer_config.ok()) return tokenizer_config.status();
  SetShape(shape, *config);
  if (tokenizer_directory != main_directory) {
    for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
      config->erase(key);
      if (tokenizer->contains(key)) (*config)[key] = (*tokenizer)[key];
    }
  }
  MergedConfig merged;
  merged.json = config->dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  absl::StatusOr<ModelConfig> parsed =
      ParseModelConfig(merged.json, absl::StrCat(main_directory, "/config.json, merged"));
  if (!parsed.ok()) return parsed.status();
  merged.config = *std::move(parsed);
  merged.config.bos_token_id = tokenizer_config->bos_token_id;
  merged.config.eos_token_ids = tokenizer_config->eos_token_ids;
  absl::Status status = CheckTokenIds(merged.config, tokenizer_directory);
  if (!status.ok()) return status;
  return merged;
}

}  // namespace marcoro
