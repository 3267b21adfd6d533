#include "worker/model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "worker/model/json_nesting.h"
#include "worker/model/text_file.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 4u << 20;

// Far above any model of this architecture, and small enough that no product of them overflows.
constexpr int32_t kMaxHidden = 1 << 16;
constexpr int32_t kMaxLayers = 1 << 10;
constexpr int32_t kMaxHeads = 1 << 10;
constexpr int32_t kMaxHeadDim = 1 << 10;
constexpr int32_t kMaxFfn = 1 << 20;
constexpr int32_t kMaxVocabulary = 1 << 22;
constexpr int32_t kMaxPositions = 1 << 24;
constexpr size_t kMaxEosTokens = 64;

// A value as messages quote it: short, whatever it is.
std::string Quote(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 60) text = absl::StrCat(text.substr(0, 60), "…");
  return text;
}

// Typed access to the keys of one JSON object. The first failure is kept; values read after it are
// harmless defaults.
class ConfigReader {
 public:
  ConfigReader(const json& object, const std::string& file) : object_(object), file_(file) {}

  const absl::Status& status() const { return status_; }

  // Present and not null.
  bool Has(const char* key) const { return Value(key) != nullptr; }

  int32_t Int(const char* key, int32_t min, int32_t max) {
    const json* value = Required(key);
    return value == nullptr ? min : ToInt(key, *value, min, max);
  }

  float Real(const char* key, double min, double max) {
    const json* value = Required(key);
    return value == nullptr ? 1.0f : ToReal(key, *value, min, max);
  }

  float ToReal(const std::string& key, const json& value, double min, double max) {
    const double number = value.is_number() ? value.get<double>() : -1;
    if (!(number >= min && number <= max)) {
      Fail(key, absl::StrCat("must be a number from ", min, " to ", max, ", is ", Quote(value)));
      return 1.0f;
    }
    return static_cast<float>(number);
  }

  // False where absent or null.
  bool Bool(const char* key) {
    const json* value = Value(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) {
      Fail(key, absl::StrCat("must be true or false, is ", Quote(*value)));
      return false;
    }
    return value->get<bool>();
  }

  std::string String(const char* key) {
    const json* value = Required(key);
    if (value == nullptr) return "";
    if (!value->is_string()) {
      Fail(key, absl::StrCat("must be a string, is ", Quote(*value)));
      return "";
    }
    return value->get<std::string>();
  }

  // One id or a list of them; empty where absent or null.
  std::vector<int32_t> TokenIds(const char* key, int32_t vocabulary_size) {
    const json* value = Value(key);
    if (value == nullptr) return {};
    if (!value->is_array()) return {ToInt(key, *value, 0, vocabulary_size - 1)};
    if (value->size() > kMaxEosTokens) {
      Fail(key, absl::StrCat("has ", value->size(), " entries, at most ", kMaxEosTokens,
                             " are allowed"));
      return {};
    }
    std::vector<int32_t> ids;
    for (const json& item : *value) ids.push_back(ToInt(key, item, 0, vocabulary_size - 1));
    return ids;
  }

  const json* Value(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }

  void Fail(const std::string& key, const std::string& what) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(absl::StrCat(file_, ": ", key, " ", what));
  }

 private:
  const json* Required(const char* key) {
    const json* value = Value(key);
    if (value == nullptr) Fail(key, "is missing");
    return value;
  }

  int32_t ToInt(const char* key, const json& value, int32_t min, int32_t max) {
    const bool fits = value.is_number_unsigned()
                          ? value.get<uint64_t>() <= std::numeric_limits<int32_t>::max()
                          : value.is_number_integer();
    const int64_t number = fits ? value.get<int64_t>() : int64_t{min} - 1;
    if (number < min || number > max) {
      Fail(key, absl::StrCat("must be an integer from ", min, " to ", max, ", is ", Quote(value)));
      return min;
    }
    return static_cast<int32_t>(number);
  }

  const json& object_;
  const std::string& file_;
  absl::Status status_;
};

absl::StatusOr<json> ParseObject(const std::string& text, const std::string& file) {
  if (absl::Status status = CheckJsonNesting(text, file); !status.ok()) return status;
  json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded())
    return absl::InvalidArgumentError(absl::StrCat(file, ": not valid JSON"));
  if (!root.is_object())
    return absl::InvalidArgumentError(absl::StrCat(file, ": not a JSON object"));
  return root;
}

void ReadArchitecture(ConfigReader& reader, ModelConfig& config) {
  const json* names = reader.Value("architectures");
  if (names == nullptr) return reader.Fail("architectures", "is missing");
  if (!names->is_array() || names->size() != 1 || names->front() != "MistralForCausalLM") {
    const bool one = names->is_array() && names->size() == 1;
    return reader.Fail("architectures", absl::StrCat("must be [\"MistralForCausalLM\"], is ",
                                                     one ? Quote(names->front()) : Quote(*names)));
  }
  config.architecture = "MistralForCausalLM";
  if (reader.Has("model_type") && reader.String("model_type") != "mistral") {
    reader.Fail("model_type", "must be \"mistral\"");
  }
}

// What the checkpoint may say but this project does not compute.
void RefuseUnsupported(ConfigReader& reader) {
  const std::string activation = reader.String("hidden_act");
  if (activation != "silu") {
    reader.Fail("hidden_act", absl::StrCat("must be \"silu\", is ", Quote(activation)));
  }
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (reader.Bool(key)) reader.Fail(key, "is true: biases are not supported");
  }
  if (reader.Has("rope_scaling")) {
    reader.Fail("rope_scaling", "is set: scaled rotary positions are not supported");
  }
}

void ReadShapes(ConfigReader& reader, ModelConfig& config) {
  config.hidden_size = reader.Int("hidden_size", 1, kMaxHidden);
  config.layers = reader.Int("num_hidden_layers", 1, kMaxLayers);
  config.heads = reader.Int("num_attention_heads", 1, kMaxHeads);
  config.kv_heads = reader.Int("num_key_value_heads", 1, kMaxHeads);
  config.ffn_size = reader.Int("intermediate_size", 1, kMaxFfn);
  config.vocabulary_size = reader.Int("vocab_size", 1, kMaxVocabulary);
  config.max_positions = reader.Int("max_position_embeddings", 1, kMaxPositions);
  if (reader.Has("sliding_window")) {
    config.sliding_window = reader.Int("sliding_window", 1, std::numeric_limits<int32_t>::max());
  }
  if (config.heads % config.kv_heads != 0) {
    reader.Fail(
        "num_key_value_heads",
        absl::StrCat(config.kv_heads, " does not divide num_attention_heads ", config.heads));
  }
  if (reader.Has("head_dim")) {
    config.head_dim = reader.Int("head_dim", 1, kMaxHeadDim);
  } else if (config.hidden_size % config.heads != 0) {
    reader.Fail("num_attention_heads",
                absl::StrCat(config.heads, " does not divide hidden_size ", config.hidden_size,
                             ", and head_dim is missing"));
  } else {
    config.head_dim = config.hidden_size / config.heads;
  }
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    reader.Fail("head_dim",
                absl::StrCat(config.head_dim, " must be even and at most ", kMaxHeadDim));
  }
}

void ReadNumerics(ConfigReader& reader, ModelConfig& config) {
  config.rms_norm_epsilon = reader.Real("rms_norm_eps", 1e-12, 0.1);
  const json* rope = reader.Value("rope_parameters");  // where newer writers keep rope_theta
  if (reader.Has("rope_theta") || rope == nullptr) {
    config.rope_theta = reader.Real("rope_theta", 1, 1e12);
  }
  if (rope != nullptr) {
    if (!rope->is_object() || rope->value("rope_type", json()) != "default") {
      return reader.Fail("rope_parameters", "must be an object whose rope_type is \"default\"");
    }
    config.rope_theta =
        reader.ToReal("rope_parameters.rope_theta", rope->value("rope_theta", json()), 1, 1e12);
  }
}

void ReadDType(ConfigReader& reader, ModelConfig& config) {
  const char* key = reader.Has("torch_dtype") ? "torch_dtype" : "dtype";
  if (!reader.Has(key)) return;  // the tensors themselves say it too
  const std::string name = reader.String(key);
  if (name == "bfloat16") {
    config.dtype = DType::kBF16;
  } else if (name == "float16") {
    config.dtype = DType::kF16;
  } else if (name == "float32") {
    config.dtype = DType::kF32;
  } else {
    reader.Fail(key, absl::StrCat("must be bfloat16, float16 or float32, is ", Quote(name)));
  }
}

void AppendStringField(const json& object, const char* key, std::string& summary) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) return;
  absl::StrAppend(&summary, summary.empty() ? "" : ", ", key, " ", Quote(*found));
}

// One line about a quantization_config (or hf_quant_config.json's "quantization").
std::string SummarizeQuantization(const json& value) {
  if (!value.is_object()) return "in an unknown form";
  std::string summary;
  for (const char* key : {"quant_method", "quant_algo", "format", "activation_scheme"}) {
    AppendStringField(value, key, summary);
  }
  if (value.contains("weight_block_size")) absl::StrAppend(&summary, ", weight_block_size");
  return summary.empty() ? "in an unknown form" : summary;
}

// Ids from generation_config.json replace config.json's; the file may be absent.
absl::Status MergeGenerationConfig(const std::string& directory, ModelConfig& config) {
  const std::string file = absl::StrCat(directory, "/generation_config.json");
  absl::StatusOr<std::string> text = ReadSmallFile(file, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  if (!text.ok()) return text.status();
  absl::StatusOr<json> root = ParseObject(*text, file);
  if (!root.ok()) return root.status();
  ConfigReader reader(*root, file);
  std::vector<int32_t> eos = reader.TokenIds("eos_token_id", config.vocabulary_size);
  if (!eos.empty()) config.eos_token_ids = std::move(eos);
  if (config.bos_token_id < 0 && reader.Has("bos_token_id")) {
    config.bos_token_id = reader.Int("bos_token_id", 0, config.vocabulary_size - 1);
  }
  return reader.status();
}

// modelopt writes what config.json lacks into a file of its own.
absl::Status MergeQuantizationFile(const std::string& directory, ModelConfig& config) {
  const std::string file = absl::StrCat(directory, "/hf_quant_config.json");
  absl::StatusOr<std::string> text = ReadSmallFile(file, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  if (!text.ok()) return text.status();
  absl::StatusOr<json> root = ParseObject(*text, file);
  if (!root.ok()) return root.status();
  if (config.quantization.empty()) {
    config.quantization =
        absl::StrCat("modelopt, ", SummarizeQuantization(root->value("quantization", json())));
  }
  return absl::OkStatus();
}

}  // namespace

int ModelConfig::reduction_segments() const {
  int segments = 8;
  while (kv_heads % segments != 0 || ffn_size % segments != 0) segments /= 2;
  return segments;
}

uint64_t ModelConfig::parameter_count() const {
  const uint64_t hidden = static_cast<uint64_t>(hidden_size);
  const uint64_t query = static_cast<uint64_t>(heads) * head_dim;
  const uint64_t key_value = static_cast<uint64_t>(kv_heads) * head_dim;
  const uint64_t attention = hidden * (2 * query + 2 * key_value);
  const uint64_t ffn = 3 * hidden * static_cast<uint64_t>(ffn_size);
  const uint64_t table = hidden * static_cast<uint64_t>(vocabulary_size);
  const uint64_t layer = attention + ffn + 2 * hidden;
  return static_cast<uint64_t>(layers) * layer + table * (tied_embeddings ? 1 : 2) + hidden;
}

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json_text,
                                             const std::string& file) {
  absl::StatusOr<json> root = ParseObject(json_text, file);
  if (!root.ok()) return root.status();
  ConfigReader reader(*root, file);
  ModelConfig config;
  ReadArchitecture(reader, config);
  RefuseUnsupported(reader);
  ReadShapes(reader, config);
  ReadNumerics(reader, config);
  ReadDType(reader, config);
  config.tied_embeddings = reader.Bool("tie_word_embeddings");
  config.bos_token_id =
      reader.Has("bos_token_id") ? reader.Int("bos_token_id", 0, config.vocabulary_size - 1) : -1;
  config.eos_token_ids = reader.TokenIds("eos_token_id", config.vocabulary_size);
  if (const json* quantization = reader.Value("quantization_config")) {
    config.quantization = SummarizeQuantization(*quantization);
  }
  if (!reader.status().ok()) return reader.status();
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  const std::string file = absl::StrCat(directory, "/config.json");
  absl::StatusOr<std::string> text = ReadSmallFile(file, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  absl::StatusOr<ModelConfig> config = ParseModelConfig(*text, file);
  if (!config.ok()) return config;
  if (absl::Status status = MergeGenerationConfig(directory, *config); !status.ok()) return status;
  if (absl::Status status = MergeQuantizationFile(directory, *config); !status.ok()) return status;
  return config;
}

}  // namespace marcoro
