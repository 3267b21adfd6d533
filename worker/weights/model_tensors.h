// Names and shapes of the tensors of a Mistral model, as Hugging Face stores them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "worker/model/config.h"

namespace marcoro {

enum class TensorRole : uint8_t {
  kEmbedding,  // or lm_head: (V, H)
  kNorm,       // (H)
  kLinear,     // (out, in), one of the seven of each layer
};

struct ModelTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorRole role = TensorRole::kLinear;
};

// Name of a layer's tensor: LayerTensorName(3, "mlp.up_proj") is
// "model.layers.3.mlp.up_proj.weight".
std::string LayerTensorName(int layer, std::string_view part);

inline constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
inline constexpr std::string_view kFinalNormName = "model.norm.weight";
inline constexpr std::string_view kLmHeadName = "lm_head.weight";

// Every tensor a model needs, each once, in the order in which it is used. No lm_head where it is
// tied to the embedding.
std::vector<ModelTensor> ModelTensors(const ModelConfig& config);

}  // namespace marcoro
