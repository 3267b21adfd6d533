#include "worker/weights/describe.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/model/parameters.h"
#include "worker/model/text_file.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/load_plan.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr size_t kMaxTokenizerConfigBytes = 16u << 20;
constexpr size_t kMaxTemplateBytes = 1u << 20;
constexpr const char* kTokenizerFiles[] = {
    "tokenizer.model",   "tokenizer.json",      "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "generation_config.json"};

// tokenizer_config.json's chat_template is a text, or a list of named ones.
std::string TemplateOf(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  std::string text;
  if (!value.is_array()) return text;
  for (const json& item : value) {
    if (!item.is_object() || !item.contains("template") || !item["template"].is_string()) continue;
    const bool is_default = item.contains("name") && item["name"] == "default";
    if (text.empty() || is_default) text = item["template"].get<std::string>();
  }
  return text;
}

absl::StatusOr<std::string> ReadChatTemplate(const std::string& directory) {
  absl::StatusOr<std::string> file =
      ReadSmallFile(absl::StrCat(directory, "/chat_template.jinja"), kMaxTemplateBytes);
  if (!absl::IsNotFound(file.status())) return file;
  const std::string path = absl::StrCat(directory, "/tokenizer_config.json");
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxTokenizerConfigBytes);
  if (absl::IsNotFound(text.status())) return std::string();
  if (!text.ok()) return text.status();
  const json root = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  }
  return root.contains("chat_template") ? TemplateOf(root["chat_template"]) : std::string();
}

// The file's name without its directory.
std::string BaseName(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

void AddTensors(const CheckpointSource& source, CheckpointDescription& description) {
  for (const TensorInfo* tensor : source.Tensors()) {
    TensorInfo info = *tensor;
    info.origin = BaseName(info.origin);
    DTypeTotals& totals = description.dtypes[info.dtype];
    totals.tensors += 1;
    totals.elements += static_cast<uint64_t>(info.rows()) * static_cast<uint64_t>(info.columns());
    totals.bytes += info.bytes;
    description.stored_bytes += info.bytes;
    description.tensors.push_back(std::move(info));
  }
}

uint64_t WeightBytes(int64_t rows, int64_t columns, DType dtype) {
  const uint64_t scales = dtype == DType::kF8E4M3 ? static_cast<uint64_t>(rows) * sizeof(float) : 0;
  return static_cast<uint64_t>(rows * columns) * SizeOf(dtype) + scales;
}

// Bytes of the weights in memory: a layer's linear ones in formats as given, tables in BF16, norms
// in float32. lm_head is held apart from the embedding even where they are tied.
uint64_t ServedBytes(const ModelConfig& config, const std::vector<LayerDTypes>& layers) {
  const int64_t hidden = config.hidden_size;
  const int64_t query = int64_t{config.heads} * config.head_dim;
  const int64_t key_value = int64_t{config.kv_heads} * config.head_dim;
  const int64_t ffn = config.ffn_size;
  uint64_t bytes = WeightBytes(2 * int64_t{config.vocabulary_size}, hidden, DType::kBF16) +
                   WeightBytes(2 * int64_t{config.layers} + 1, hidden, DType::kF32);
  for (const LayerDTypes& layer : layers) {
    bytes += WeightBytes(query + 2 * key_value, hidden, layer.qkv);
    bytes += WeightBytes(hidden, query, layer.o_proj);
    bytes += WeightBytes(2 * ffn, hidden, layer.gate_up);
    bytes += WeightBytes(hidden, ffn, layer.down);
  }
  return bytes;
}

std::vector<LayerDTypes> AllLayers(const ModelConfig& config, DType dtype) {
  return std::vector<LayerDTypes>(static_cast<size_t>(config.layers),
                                  {.qkv = dtype, .o_proj = dtype, .gate_up = dtype, .down = dtype});
}

// What can only be told by a source that understands the checkpoint's quantization.
void AddServing(const std::string& directory, CheckpointDescription& description) {
  const ModelConfig& config = description.config;
  std::vector<LayerDTypes> fp8_layers = AllLayers(config, DType::kF8E4M3);
  absl::StatusOr<std::unique_ptr<CheckpointSource>> source = CheckpointSource::Open(directory);
  description.quantization = config.quantization;
  description.servable = source.status();
  if (source.ok()) {
    if ((*source)->quantization().has_value()) {
      description.quantization = (*source)->quantization()->Description();
    }
    std::vector<std::string> unused;
    description.servable = CheckTensors(**source, config, &unused);
  }
  if (description.servable.ok()) {
    fp8_layers = PlanLinearDTypes(**source, config, DType::kF8E4M3);
  }
  description.fp8_bytes = ServedBytes(config, fp8_layers);
  description.bf16_bytes = ServedBytes(config, AllLayers(config, DType::kBF16));
}

}  // namespace

absl::StatusOr<CheckpointDescription> DescribeCheckpoint(const std::string& directory) {
  absl::StatusOr<ModelConfig> config = LoadModelConfig(directory);
  if (!config.ok()) return config.status();
  absl::StatusOr<std::unique_ptr<CheckpointSource>> source =
      CheckpointSource::OpenStored(directory);
  if (!source.ok()) return source.status();
  absl::StatusOr<std::string> chat_template = ReadChatTemplate(directory);
  if (!chat_template.ok()) return chat_template.status();

  CheckpointDescription description;
  description.directory = directory;
  description.config = *config;
  description.parameters = config->parameter_count();
  AddTensors(**source, description);
  AddServing(directory, description);
  const uint64_t kv_rows =
      uint64_t{2} * static_cast<uint64_t>(config->layers) * static_cast<uint64_t>(config->kv_heads);
  const auto head_dim = static_cast<uint64_t>(config->head_dim);
  description.kv_bytes_per_token = kv_rows * head_dim * SizeOf(DType::kBF16);
  description.kv_fp8_bytes_per_token =
      kv_rows * (head_dim * SizeOf(DType::kF8E4M3) + sizeof(float));
  for (int degree = 1; CheckTensorParallel(*config, degree).ok(); degree *= 2) {
    description.tensor_parallel_degrees.push_back(degree);
  }
  description.chat_template = *std::move(chat_template);
  for (const char* name : kTokenizerFiles) {
    if (IsRegularFile(absl::StrCat(directory, "/", name))) {
      description.tokenizer_files.push_back(name);
    }
  }
  return description;
}

}  // namespace marcoro
