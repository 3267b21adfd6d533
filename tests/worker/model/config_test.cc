#include "worker/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

namespace marcoro {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// The config.json of Mistral-7B-v0.1 and of the merges of it.
json Mistral7B() {
  return json::parse(R"({
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0",
    "use_cache": true, "vocab_size": 32000})");
}

absl::StatusOr<ModelConfig> Parse(const json& root) {
  return ParseModelConfig(root.dump(), "folder/config.json");
}

TEST(ModelConfig, ReadsMistral7B) {
  const auto config = Parse(Mistral7B());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "MistralForCausalLM");
  EXPECT_EQ(config->hidden_size, 4096);
  EXPECT_EQ(config->layers, 32);
  EXPECT_EQ(config->heads, 32);
  EXPECT_EQ(config->kv_heads, 8);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->ffn_size, 14336);
  EXPECT_EQ(config->vocabulary_size, 32000);
  EXPECT_EQ(config->max_positions, 32768);
  EXPECT_EQ(config->sliding_window, 4096);
  EXPECT_EQ(config->rope_theta, 1e4f);
  EXPECT_EQ(config->rms_norm_epsilon, 1e-5f);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->dtype, DType::kBF16);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_THAT(config->quantization, IsEmpty());
  EXPECT_EQ(config->reduction_segments(), 8);
  EXPECT_EQ(config->parameter_count(), 7'241'732'096u);
}

TEST(ModelConfig, ReadsTheTestCheckpoints) {
  const std::string data = MARCORO_TEST_DATA "/";
  const auto tiny = LoadModelConfig(data + "tiny");
  ASSERT_TRUE(tiny.ok()) << tiny.status();
  EXPECT_EQ(tiny->head_dim, 16);
  EXPECT_EQ(tiny->sliding_window, 0);
  EXPECT_EQ(tiny->reduction_segments(), 2);
  EXPECT_THAT(tiny->eos_token_ids, ElementsAre(2));
  // Two tables, a final norm, two layers: 2·131072/2 + 64 + 2·(2·64 + 64·(64+32+32+64) + 3·64·176).
  EXPECT_EQ(tiny->parameter_count(), 223'552u);

  const auto small = LoadModelConfig(data + "small");
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->dtype, DType::kF16);
  EXPECT_EQ(small->reduction_segments(), 8);
  EXPECT_THAT(small->eos_token_ids, ElementsAre(2, 13)) << "generation_config.json's";

  const auto window = LoadModelConfig(data + "window");
  ASSERT_TRUE(window.ok()) << window.status();
  EXPECT_EQ(window->head_dim, 32);
  EXPECT_EQ(window->sliding_window, 16);
  EXPECT_EQ(window->rope_theta, 1e6f);
  EXPECT_EQ(window->rms_norm_epsilon, 1e-6f);
  EXPECT_EQ(window->dtype, DType::kF32);
  EXPECT_TRUE(window->tied_embeddings);
}

TEST(ModelConfig, TakesWhatMayBeAbsent) {
  json root = Mistral7B();
  for (const char* key : {"sliding_window", "tie_word_embeddings", "torch_dtype", "model_type",
                          "bos_token_id", "eos_token_id"}) {
    root.erase(key);
  }
  const auto config = Parse(root);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->sliding_window, 0);
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_EQ(config->dtype, DType::kBF16);
  EXPECT_EQ(config->bos_token_id, -1);
  EXPECT_THAT(config->eos_token_ids, IsEmpty());
}

TEST(ModelConfig, NullIsAbsent) {
  json root = Mistral7B();
  for (const char* key : {"sliding_window", "head_dim", "rope_scaling", "quantization_config"}) {
    root[key] = nullptr;
  }
  const auto config = Parse(root);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->sliding_window, 0);
  EXPECT_EQ(config->head_dim, 128);
}

TEST(ModelConfig, TakesRopeThetaFromRopeParameters) {
  json root = Mistral7B();
  root.erase("rope_theta");
  root["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e5}};
  root.erase("torch_dtype");
  root["dtype"] = "float16";
  const auto config = Parse(root);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_theta, 5e5f);
  EXPECT_EQ(config->dtype, DType::kF16);
}

TEST(ModelConfig, NamesThePreQuantizedFormat) {
  json root = Mistral7B();
  root["quantization_config"] = {{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}};
  const auto config = Parse(root);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->quantization, HasSubstr("fp8"));
  EXPECT_THAT(config->quantization, HasSubstr("dynamic"));
}

// One value set, and the key that the message must name.
struct BadValue {
  const char* key;
  json value;
  std::string named;
};

std::vector<BadValue> BadValueList() {
  std::vector<BadValue> list;
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "vocab_size", "max_position_embeddings", "head_dim"}) {
    for (const json& value :
         {json(0), json(-1), json(INT32_MIN), json(2147483648u), json(INT64_MIN), json(UINT64_MAX),
          json(1e3), json(4096.5), json("4096"), json(true), json::array({4096}), json::object(),
          json(1 << 30)}) {
      list.push_back({key, value, key});
    }
  }
  const std::vector<BadValue> others = {
      {"architectures", nullptr, "architectures"},
      {"architectures", "MistralForCausalLM", "architectures"},
      {"architectures", json::array(), "architectures"},
      {"architectures", {"LlamaForCausalLM"}, "LlamaForCausalLM"},
      {"architectures", {"MistralForCausalLM", "x"}, "architectures"},
      {"architectures", {7}, "architectures"},
      {"model_type", "llama", "model_type"},
      {"hidden_act", "gelu", "hidden_act"},
      {"hidden_act", 3, "hidden_act"},
      {"attention_bias", true, "attention_bias"},
      {"attention_bias", "no", "attention_bias"},
      {"mlp_bias", true, "mlp_bias"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}, "rope_scaling"},
      {"rope_parameters", {{"rope_type", "yarn"}, {"rope_theta", 1e4}}, "rope_parameters"},
      {"rope_parameters", {{"rope_type", "default"}}, "rope_parameters.rope_theta"},
      {"rope_parameters", 3, "rope_parameters"},
      {"num_key_value_heads", 5, "num_key_value_heads"},
      {"num_key_value_heads", 64, "num_key_value_heads"},
      {"num_attention_heads", 24, "num_attention_heads"},
      {"head_dim", 63, "head_dim"},
      {"head_dim", 1, "head_dim"},
      {"hidden_size", 4097, "num_attention_heads"},
      {"hidden_size", 32, "head_dim"},
      {"sliding_window", 0, "sliding_window"},
      {"sliding_window", -1, "sliding_window"},
      {"sliding_window", "4096", "sliding_window"},
      {"rms_norm_eps", 0.0, "rms_norm_eps"},
      {"rms_norm_eps", -1e-5, "rms_norm_eps"},
      {"rms_norm_eps", 1.0, "rms_norm_eps"},
      {"rms_norm_eps", "1e-5", "rms_norm_eps"},
      {"rope_theta", 0, "rope_theta"},
      {"rope_theta", -1e4, "rope_theta"},
      {"rope_theta", 1e300, "rope_theta"},
      {"torch_dtype", "float8", "torch_dtype"},
      {"torch_dtype", 16, "torch_dtype"},
      {"tie_word_embeddings", 1, "tie_word_embeddings"},
      {"bos_token_id", -1, "bos_token_id"},
      {"bos_token_id", 32000, "bos_token_id"},
      {"eos_token_id", 32000, "eos_token_id"},
      {"eos_token_id", {2, -1}, "eos_token_id"},
      {"eos_token_id", {2, "x"}, "eos_token_id"},
      {"eos_token_id", "2", "eos_token_id"},
      {"eos_token_id", std::vector<int>(65, 2), "eos_token_id"}};
  list.insert(list.end(), others.begin(), others.end());
  return list;
}

TEST(ModelConfig, BadValuesAreRefusedByName) {
  for (const BadValue& bad : BadValueList()) {
    SCOPED_TRACE(bad.key + (" = " + bad.value.dump()));
    json root = Mistral7B();
    root[bad.key] = bad.value;
    const absl::Status status = Parse(root).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("folder/config.json: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(bad.named));
  }
}

TEST(ModelConfig, MissingKeysAreRefusedByName) {
  for (const std::string key :
       {"architectures", "hidden_act", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "intermediate_size", "vocab_size", "max_position_embeddings",
        "rms_norm_eps", "rope_theta"}) {
    json root = Mistral7B();
    root.erase(key);
    const absl::Status status = Parse(root).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_EQ(status.message(), "folder/config.json: " + key + " is missing");
  }
}

TEST(ModelConfig, WhatIsNoObjectIsRefused) {
  for (const char* text : {"", "[]", "null", "3", "\"x\"", "{", "{} {}", "\xff\xfe", "{'a':1}"}) {
    const absl::Status status = ParseModelConfig(text, "c").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ModelConfig, DeepNestingIsRefused) {
  const std::string text = "{\"a\":" + std::string(1'000'000, '[');
  EXPECT_EQ(ParseModelConfig(text, "c").status().code(), absl::StatusCode::kInvalidArgument);
}

// A folder with config files, gone at the end.
class ConfigFolder : public ::testing::Test {
 protected:
  ConfigFolder() {
    std::string name = ::testing::TempDir() + "marcoro_config_XXXXXX";
    if (mkdtemp(name.data()) == nullptr) std::abort();
    folder_ = name;
    Write("config.json", Mistral7B().dump());
  }
  ~ConfigFolder() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name) << text;
  }

  std::string folder_;
};

TEST_F(ConfigFolder, GenerationConfigsEosReplacesTheConfigs) {
  Write("generation_config.json", R"({"eos_token_id": [7, 8]})");
  EXPECT_THAT(LoadModelConfig(folder_)->eos_token_ids, ElementsAre(7, 8));
  Write("generation_config.json", R"({"eos_token_id": 9})");
  EXPECT_THAT(LoadModelConfig(folder_)->eos_token_ids, ElementsAre(9));
  Write("generation_config.json", R"({"temperature": 0.5})");
  EXPECT_THAT(LoadModelConfig(folder_)->eos_token_ids, ElementsAre(2));
}

TEST_F(ConfigFolder, GenerationConfigIsCheckedToo) {
  for (const char* text : {"{", "[]", R"({"eos_token_id": 32000})"}) {
    Write("generation_config.json", text);
    const absl::Status status = LoadModelConfig(folder_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("generation_config.json"));
  }
}

TEST_F(ConfigFolder, ModeloptsOwnFileNamesTheFormat) {
  Write("hf_quant_config.json", R"({"producer": {}, "quantization": {"quant_algo": "FP8"}})");
  EXPECT_THAT(LoadModelConfig(folder_)->quantization, HasSubstr("modelopt, quant_algo \"FP8\""));
}

TEST_F(ConfigFolder, MissingFolderAndFileAreNotFound) {
  EXPECT_EQ(LoadModelConfig(folder_ + "/none").status().code(), absl::StatusCode::kNotFound);
  std::filesystem::remove(folder_ + "/config.json");
  const absl::Status status = LoadModelConfig(folder_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_ + "/config.json"));
}

TEST_F(ConfigFolder, FolderInPlaceOfAFileAndFilesTooLongAreRefused) {
  std::filesystem::create_directory(folder_ + "/generation_config.json");
  EXPECT_EQ(LoadModelConfig(folder_).status().code(), absl::StatusCode::kInvalidArgument);
  std::filesystem::remove(folder_ + "/generation_config.json");
  std::filesystem::resize_file(folder_ + "/config.json", 1u << 30);
  EXPECT_EQ(LoadModelConfig(folder_).status().code(), absl::StatusCode::kInvalidArgument);
}

// Whatever the bytes: a config that keeps every promise of config.h, or a clean error.
TEST(ModelConfig, SurvivesMutations) {
  std::mt19937_64 random(1);
  const std::string original = Mistral7B().dump();
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text = original;
    for (uint64_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, 1 + random() % 8);
          break;
        case 2:
          text.insert(at, text.substr(random() % text.size(), random() % 16));
          break;
        default:
          text[at] = "0123456789-.eE\"[]{},:"[random() % 21];
      }
      if (text.empty()) text.assign(1, '{');
    }
    const auto config = ParseModelConfig(text, "c");
    if (!config.ok()) {
      EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
      continue;
    }
    ++accepted;
    ASSERT_GT(config->hidden_size, 0) << text;
    ASSERT_EQ(config->heads % config->kv_heads, 0) << text;
    ASSERT_EQ(config->head_dim % 2, 0) << text;
    ASSERT_GE(config->reduction_segments(), 1) << text;
    ASSERT_GT(config->parameter_count(), 0u) << text;
  }
  EXPECT_GT(accepted, 100);
  EXPECT_LT(accepted, 19'900);
}

}  // namespace
}  // namespace marcoro
