// What a checkpoint is, without loading it: for `marcoro inspect`.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

struct DTypeTotals {
  uint64_t tensors = 0;
  uint64_t elements = 0;
  uint64_t bytes = 0;
};

struct CheckpointDescription {
  std::string directory;
  ModelConfig config;
  std::string quantization;         // one line about a pre-quantized format; empty: plain numbers
  uint64_t parameters = 0;          // of the model that the config describes
  std::vector<TensorInfo> tensors;  // by name; origin is the file's name in the directory
  uint64_t stored_bytes = 0;        // of all tensors
  std::map<std::string, DTypeTotals> dtypes;  // by safetensors' name
  // Of all weights served with FP8 linears, scales included, at tp 1. Linears that the loader would
  // hold in BF16 all the same (LoadOptions::linear_dtype) count as such.
  uint64_t fp8_bytes = 0;
  uint64_t bf16_bytes = 0;                   // the same with BF16 linears
  uint64_t kv_bytes_per_token = 0;           // BF16 keys and values of all layers
  uint64_t kv_fp8_bytes_per_token = 0;       // the same in FP8, with their scales
  std::vector<int> tensor_parallel_degrees;  // ascending
  std::string chat_template;                 // Jinja text; empty if there is none
  std::vector<std::string> tokenizer_files;  // those of the usual names that are present
  absl::Status
      servable;  // what LoadParameters would refuse it for, from names, shapes and types alone
};

// Reads config.json, the safetensors' headers and tokenizer_config.json. Errors as LoadModelConfig
// and CheckpointSource::Open give them; a checkpoint that is whole but cannot be served is
// described, and `servable` says why.
absl::StatusOr<CheckpointDescription> DescribeCheckpoint(const std::string& directory);

}  // namespace marcoro
