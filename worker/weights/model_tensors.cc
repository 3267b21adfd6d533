#include "worker/weights/model_tensors.h"

#include "absl/strings/str_cat.h"

namespace marcoro {

std::string LayerTensorName(int layer, std::string_view part) {
  return absl::StrCat("model.layers.", layer, ".", std::string(part), ".weight");
}

std::vector<ModelTensor> ModelTensors(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t query = int64_t{config.heads} * config.head_dim;
  const int64_t key_value = int64_t{config.kv_heads} * config.head_dim;
  const int64_t ffn = config.ffn_size;
  const int64_t vocabulary = config.vocabulary_size;
  std::vector<ModelTensor> tensors;
  const auto add = [&tensors](std::string_view name, std::vector<int64_t> shape, TensorRole role) {
    tensors.push_back({std::string(name), std::move(shape), role});
  };
  add(kEmbeddingName, {vocabulary, hidden}, TensorRole::kEmbedding);
  for (int32_t i = 0; i < config.layers; ++i) {
    const auto linear = [&](std::string_view part, int64_t rows, int64_t columns) {
      add(LayerTensorName(i, part), {rows, columns}, TensorRole::kLinear);
    };
    add(LayerTensorName(i, "input_layernorm"), {hidden}, TensorRole::kNorm);
    linear("self_attn.q_proj", query, hidden);
    linear("self_attn.k_proj", key_value, hidden);
    linear("self_attn.v_proj", key_value, hidden);
    linear("self_attn.o_proj", hidden, query);
    add(LayerTensorName(i, "post_attention_layernorm"), {hidden}, TensorRole::kNorm);
    linear("mlp.gate_proj", ffn, hidden);
    linear("mlp.up_proj", ffn, hidden);
    linear("mlp.down_proj", hidden, ffn);
  }
  add(kFinalNormName, {hidden}, TensorRole::kNorm);
  if (!config.tied_embeddings) add(kLmHeadName, {vocabulary, hidden}, TensorRole::kEmbedding);
  return tensors;
}

}  // namespace marcoro
