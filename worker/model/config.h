// The architecture of a Mistral checkpoint, as its config.json states it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace marcoro {

struct ModelConfig {
  std::string architecture;  // "MistralForCausalLM"
  int32_t hidden_size = 0;   // H
  int32_t layers = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;         // divides heads
  int32_t head_dim = 0;         // even; hidden_size / heads where the file does not give it
  int32_t ffn_size = 0;         // F
  int32_t vocabulary_size = 0;  // V
  int32_t max_positions = 0;
  int32_t sliding_window = 0;  // 0: none
  float rope_theta = 0;
  float rms_norm_epsilon = 0;
  bool tied_embeddings = false;        // lm_head is the embedding
  DType dtype = DType::kBF16;          // what the checkpoint says it is stored in
  int32_t bos_token_id = 0;            // -1: none
  std::vector<int32_t> eos_token_ids;  // generation_config.json's where it has some; may be empty
  // Format of a pre-quantized checkpoint, for example "fp8, activation_scheme dynamic"; empty where
  // the weights are plain numbers.
  std::string quantization;

  // V of the numerics contract: the largest power of two <= 8 that divides kv_heads and ffn_size.
  // Row-parallel products are summed over this many equal segments; a tensor-parallel degree is a
  // power of two up to it.
  int reduction_segments() const;

  // Parameters of the whole model (tied ones counted once).
  uint64_t parameter_count() const;
};

// Reads directory/config.json. NOT_FOUND without the file, INVALID_ARGUMENT (naming file and key)
// for anything this project does not serve or that cannot be: other architectures, other
// activations, missing or impossible values.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory);

// The same from the text of a config.json; `file` is used in messages.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json, const std::string& file);

}  // namespace marcoro
