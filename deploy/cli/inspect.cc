// marcoro inspect: what a checkpoint is, without loading it.
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/text/chat_template.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "worker/weights/describe.h"

namespace marcoro {
namespace {

using Json = nlohmann::ordered_json;

struct InspectFlags {
  bool tensors = false;
  bool json = false;
};

FlagTable Flags(InspectFlags* flags) {
  FlagTable table(
      "usage: marcoro inspect [flags] DIR\n\n"
      "Describes the checkpoint in DIR from its config, tensor headers and tokenizer files. "
      "Memory is that of each rank's weights: linear layers and lm_head are cut among the ranks, "
      "the embedding and the norms are whole on each.");
  table.Add("tensors", &flags->tensors, {.help = "List every tensor."});
  table.Add("json", &flags->json, {.help = "Write JSON."});
  return table;
}

// Name of the chat template, "none", or "not recognised: …".
std::string TemplateName(const CheckpointDescription& checkpoint) {
  if (checkpoint.chat_template.empty()) return "none";
  const auto recognised = ChatTemplate::Recognize(checkpoint.chat_template);
  if (recognised.ok()) return std::string(recognised->name());
  return absl::StrCat("not recognised: ", recognised.status().message());
}

std::string ServableText(const CheckpointDescription& checkpoint) {
  return checkpoint.servable.ok() ? "yes" : absl::StrCat("no: ", checkpoint.servable.message());
}

// Bytes of one rank's weights, of `total` bytes at tp 1.
uint64_t RankBytes(const CheckpointDescription& checkpoint, uint64_t total, int degree) {
  const ModelConfig& config = checkpoint.config;
  const auto hidden = static_cast<uint64_t>(config.hidden_size);
  const uint64_t embedding = static_cast<uint64_t>(config.vocabulary_size) * hidden * 2;
  const uint64_t norms = (2 * static_cast<uint64_t>(config.layers) + 1) * hidden * sizeof(float);
  const uint64_t whole = embedding + norms;
  return whole +
         (total - whole + static_cast<uint64_t>(degree) - 1) / static_cast<uint64_t>(degree);
}

std::string Bytes(uint64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.2f %s", value, units[unit]);
}

Json TensorsJson(const CheckpointDescription& checkpoint) {
  Json tensors = Json::array();
  for (const TensorInfo& tensor : checkpoint.tensors) {
    tensors.push_back({{"name", tensor.name},
                       {"dtype", tensor.dtype},
                       {"shape", tensor.shape},
                       {"bytes", tensor.bytes},
                       {"file", tensor.origin}});
  }
  return tensors;
}

// Six significant digits: 1e-05 where the nearest float32 is 9.999999747e-06.
double Rounded(float value) {
  double rounded = value;
  if (!absl::SimpleAtod(absl::StrCat(value), &rounded)) return value;
  return rounded;
}

Json ConfigJson(const ModelConfig& config) {
  return {{"hidden_size", config.hidden_size},
          {"layers", config.layers},
          {"heads", config.heads},
          {"kv_heads", config.kv_heads},
          {"head_dim", config.head_dim},
          {"ffn_size", config.ffn_size},
          {"vocabulary_size", config.vocabulary_size},
          {"max_positions", config.max_positions},
          {"sliding_window", config.sliding_window},
          {"rope_theta", Rounded(config.rope_theta)},
          {"rms_norm_epsilon", Rounded(config.rms_norm_epsilon)},
          {"tied_embeddings", config.tied_embeddings},
          {"bos_token_id", config.bos_token_id},
          {"eos_token_ids", config.eos_token_ids}};
}

std::string AsJson(const CheckpointDescription& checkpoint, bool tensors) {
  Json root = {{"directory", checkpoint.directory},
               {"architecture", checkpoint.config.architecture},
               {"config", ConfigJson(checkpoint.config)},
               {"parameters", checkpoint.parameters},
               {"stored_bytes", checkpoint.stored_bytes},
               {"quantization", checkpoint.quantization},
               {"kv_bytes_per_token", checkpoint.kv_bytes_per_token},
               {"kv_fp8_bytes_per_token", checkpoint.kv_fp8_bytes_per_token},
               {"chat_template", TemplateName(checkpoint)},
               {"tokenizer_files", checkpoint.tokenizer_files},
               {"tensor_parallel_degrees", checkpoint.tensor_parallel_degrees},
               {"servable", checkpoint.servable.ok()}};
  if (!checkpoint.servable.ok()) root["problem"] = std::string(checkpoint.servable.message());
  root["dtypes"] = Json::object();
  for (const auto& [dtype, totals] : checkpoint.dtypes) {
    root["dtypes"][dtype] = {
        {"tensors", totals.tensors}, {"elements", totals.elements}, {"bytes", totals.bytes}};
  }
  root["rank_weight_bytes"] = Json::array();
  for (const int degree : checkpoint.tensor_parallel_degrees) {
    root["rank_weight_bytes"].push_back(
        {{"tensor_parallel", degree},
         {"fp8", RankBytes(checkpoint, checkpoint.fp8_bytes, degree)},
         {"bf16", RankBytes(checkpoint, checkpoint.bf16_bytes, degree)}});
  }
  if (tensors) root["tensors"] = TensorsJson(checkpoint);
  // File names may hold any bytes.
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string Row(const std::string& name, const std::string& value) {
  return absl::StrFormat("%-20s %s\n", name, value);
}

std::string ShapeText(const ModelConfig& config) {
  return absl::StrCat("hidden ", config.hidden_size, ", layers ", config.layers, ", heads ",
                      config.heads, " (", config.kv_heads, " KV) of ", config.head_dim, ", FFN ",
                      config.ffn_size, ", vocabulary ", config.vocabulary_size);
}

std::string AttentionText(const ModelConfig& config) {
  return absl::StrCat(
      config.max_positions, " positions, ",
      config.sliding_window == 0 ? std::string("no sliding window")
                                 : absl::StrCat("sliding window ", config.sliding_window),
      ", rope theta ", config.rope_theta, ", RMS norm epsilon ", config.rms_norm_epsilon);
}

std::string MemoryTable(const CheckpointDescription& checkpoint) {
  std::string table = absl::StrFormat("\n%-20s %14s %14s\n", "weights of a rank", "fp8", "bf16");
  for (const int degree : checkpoint.tensor_parallel_degrees) {
    absl::StrAppendFormat(&table, "%-20s %14s %14s\n", absl::StrCat("  tp ", degree),
                          Bytes(RankBytes(checkpoint, checkpoint.fp8_bytes, degree)),
                          Bytes(RankBytes(checkpoint, checkpoint.bf16_bytes, degree)));
  }
  return table;
}

std::string CacheTable(const CheckpointDescription& checkpoint) {
  constexpr uint64_t kGibibyte = uint64_t{1} << 30;
  const uint64_t fp8 = checkpoint.kv_fp8_bytes_per_token;
  const uint64_t bf16 = checkpoint.kv_bytes_per_token;
  return absl::StrFormat("\n%-20s %14s %14s\n", "KV cache of all ranks", "fp8", "bf16") +
         absl::StrFormat("%-20s %14s %14s\n", "  a token", Bytes(fp8), Bytes(bf16)) +
         absl::StrFormat("%-20s %14u %14u\n", "  tokens in a GiB", kGibibyte / fp8,
                         kGibibyte / bf16);
}

std::string TensorTable(const CheckpointDescription& checkpoint) {
  std::string table =
      absl::StrFormat("\n%-52s %-5s %-16s %12s  %s\n", "tensor", "dtype", "shape", "bytes", "file");
  for (const TensorInfo& tensor : checkpoint.tensors) {
    absl::StrAppendFormat(&table, "%-52s %-5s %-16s %12u  %s\n", tensor.name, tensor.dtype,
                          FormatShape(tensor.shape), tensor.bytes, tensor.origin);
  }
  return table;
}

std::string AsText(const CheckpointDescription& checkpoint, bool tensors) {
  const ModelConfig& config = checkpoint.config;
  std::string text = Row("checkpoint", checkpoint.directory);
  text += Row("architecture", config.architecture);
  text += Row("parameters", absl::StrFormat("%u (%.2f billion)", checkpoint.parameters,
                                            static_cast<double>(checkpoint.parameters) / 1e9));
  text += Row("shapes", ShapeText(config));
  text += Row("attention", AttentionText(config));
  text += Row("embeddings", config.tied_embeddings ? "tied with lm_head" : "untied");
  text += Row("special tokens", absl::StrCat("bos ", config.bos_token_id, ", eos ",
                                             absl::StrJoin(config.eos_token_ids, ", ")));
  for (const auto& [dtype, totals] : checkpoint.dtypes) {
    text += Row(absl::StrCat("stored as ", dtype),
                absl::StrCat(totals.tensors, " tensors, ", Bytes(totals.bytes)));
  }
  text += Row("quantization", checkpoint.quantization.empty() ? "none" : checkpoint.quantization);
  text += Row("chat template", TemplateName(checkpoint));
  text += Row("tokenizer files", checkpoint.tokenizer_files.empty()
                                     ? "none: only token ids can be served"
                                     : absl::StrJoin(checkpoint.tokenizer_files, ", "));
  text += Row("tensor parallel", absl::StrJoin(checkpoint.tensor_parallel_degrees, ", "));
  text += Row("can be served", ServableText(checkpoint));
  text += MemoryTable(checkpoint) + CacheTable(checkpoint);
  if (tensors) text += TensorTable(checkpoint);
  return text;
}

}  // namespace

int InspectCommand(const std::vector<std::string>& arguments) {
  InspectFlags flags;
  const CommandArguments parsed = ParseCommand("inspect", Flags(&flags), arguments, 1);
  if (parsed.exit_code) return *parsed.exit_code;
  if (parsed.positional.empty()) {
    return UsageError("inspect", "which checkpoint? usage: marcoro inspect DIR");
  }
  const auto checkpoint = DescribeCheckpoint(parsed.positional[0]);
  if (!checkpoint.ok()) return Failure("inspect", checkpoint.status());
  const std::string text =
      flags.json ? AsJson(*checkpoint, flags.tensors) : AsText(*checkpoint, flags.tensors);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace marcoro
