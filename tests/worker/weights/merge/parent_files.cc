#include "tests/worker/weights/merge/parent_files.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

namespace marcoro::testing {
namespace {

void AddZeros(StoredTensors& tensors, const std::string& name, const ParentShape& shape,
              const std::vector<int64_t>& dimensions) {
  size_t bytes = shape.dtype == "F32" ? 4 : 2;
  for (const int64_t dimension : dimensions) bytes *= static_cast<size_t>(dimension);
  tensors[name] = {shape.dtype, dimensions, std::string(bytes, '\0')};
}

}  // namespace

StoredTensors ZeroTensors(const ParentShape& shape) {
  StoredTensors tensors;
  const auto add = [&](const std::string& name, const std::vector<int64_t>& dimensions) {
    AddZeros(tensors, name, shape, dimensions);
  };
  const int64_t hidden = shape.hidden;
  const int64_t key_value = hidden / shape.heads * shape.kv_heads;
  for (int layer = 0; layer < shape.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add(prefix + "input_layernorm.weight", {hidden});
    add(prefix + "self_attn.q_proj.weight", {hidden, hidden});
    add(prefix + "self_attn.k_proj.weight", {key_value, hidden});
    add(prefix + "self_attn.v_proj.weight", {key_value, hidden});
    add(prefix + "self_attn.o_proj.weight", {hidden, hidden});
    add(prefix + "post_attention_layernorm.weight", {hidden});
    add(prefix + "mlp.gate_proj.weight", {shape.ffn, hidden});
    add(prefix + "mlp.up_proj.weight", {shape.ffn, hidden});
    add(prefix + "mlp.down_proj.weight", {hidden, shape.ffn});
  }
  add("model.embed_tokens.weight", {shape.vocabulary, hidden});
  add("model.norm.weight", {hidden});
  if (!shape.tied) add("lm_head.weight", {shape.vocabulary, hidden});
  return tensors;
}

void WriteParentConfig(const std::string& directory, const ParentShape& shape) {
  std::filesystem::create_directories(directory);
  const nlohmann::json config = {{"architectures", {"MistralForCausalLM"}},
                                 {"model_type", "mistral"},
                                 {"hidden_act", "silu"},
                                 {"hidden_size", shape.hidden},
                                 {"intermediate_size", shape.ffn},
                                 {"num_hidden_layers", shape.layers},
                                 {"num_attention_heads", shape.heads},
                                 {"num_key_value_heads", shape.kv_heads},
                                 {"vocab_size", shape.vocabulary},
                                 {"max_position_embeddings", 128},
                                 {"rms_norm_eps", 1e-5},
                                 {"rope_theta", 10000.0},
                                 {"tie_word_embeddings", shape.tied},
                                 {"bos_token_id", 1},
                                 {"eos_token_id", 2}};
  WriteFile(directory + "/config.json", config.dump());
}

void WriteParent(const std::string& directory, const ParentShape& shape) {
  WriteParentConfig(directory, shape);
  WriteTensors(directory + "/model.safetensors", ZeroTensors(shape));
}

std::string RecipeFolder::Write(const std::string& recipe) const {
  const std::string path = folder_.File("recipe.yml");
  WriteFile(path, recipe);
  return path;
}

}  // namespace marcoro::testing
