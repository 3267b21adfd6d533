// What the coordinator knows of the model it serves, read from the checkpoint's folder: everything
// but the weights.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/api/generation_defaults.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace marcoro {

struct ServedModel {
  std::string name;
  std::string checkpoint;    // where it comes from: the folder or recipe, as it was given
  std::string architecture;  // for example "MistralForCausalLM"
  std::string license;       // of the model card's front matter; may be empty
  uint32_t vocabulary_size = 0;
  uint32_t max_positions = 0;  // of config.json; workers may allow fewer
  uint32_t concurrency_cost = 1;
  std::vector<uint32_t> eos_ids;
  GenerationDefaults defaults;

  // Null: the folder has no tokenizer.model, and only token ids are served.
  std::unique_ptr<const Tokenizer> tokenizer;
  // Null: the checkpoint names no chat template.
  std::unique_ptr<const ChatTemplate> chat_template;
};

struct ServedModelOptions {
  std::string directory;
  std::string name;           // empty: the last part of the directory
  std::string chat_template;  // empty: recognised from tokenizer_config.json
  uint32_t concurrency_cost = 1;
  std::string checkpoint;  // what clients are told; empty: the directory
};

// NOT_FOUND without the folder or its config.json; INVALID_ARGUMENT naming the file and the field
// for anything that does not make sense, such as a tokenizer that is none or has more pieces than
// the vocabulary, or an unknown chat template.
absl::StatusOr<std::unique_ptr<const ServedModel>> LoadServedModel(
    const ServedModelOptions& options);

}  // namespace marcoro
