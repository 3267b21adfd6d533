// From a tensor source to a written checkpoint: every tensor of the model, as the source has it or
// quantized. One streaming pass; besides the source's own it holds a few MB per thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/weights/checkpoint_writer.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

enum class ExportFormat : uint8_t {
  kPlain,  // BF16, F16 or F32 as the source's tensors are
  // compressed-tensors' float-quantized: linear weights as E4M3FN codes with a scale for each row,
  // "….weight_scale" [out, 1] in the type of the weight; the rest as kPlain.
  kFp8,
};

// A tensor of the source. In its shard it is output number `output`, and its scales, if it is
// quantized, the one after that.
struct ExportTensor {
  const TensorInfo* source = nullptr;
  bool quantized = false;
  size_t output = 0;
};

struct ExportPlan {
  std::vector<CheckpointShard> shards;
  std::vector<std::vector<ExportTensor>> tensors;  // by shard, in the order of use
};

// Fills one shard after the other up to shard_bytes; a tensor that is larger has a shard of its
// own. INVALID_ARGUMENT as CheckTensors, and for a source that is pre-quantized.
absl::StatusOr<ExportPlan> PlanExport(const TensorSource& source, const ModelConfig& config,
                                      ExportFormat format, uint64_t shard_bytes);

struct ExportOptions {
  // Runs pieces of the work; on one thread or several the bytes are the same.
  ParallelFor parallel;
  // As LoadOptions::progress; what an earlier run has finished is not counted. May be empty.
  std::function<void(uint64_t done, uint64_t total)> progress;
  // Ends the export with CANCELLED soon after it becomes true. May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

// Writes every shard that is not finished. Errors of the source and of the writer;
// INVALID_ARGUMENT, naming origin, tensor and row, for a number that is not finite.
absl::Status ExportTensors(TensorSource& source, const ExportPlan& plan,
                           const ExportOptions& options, CheckpointWriter& writer);

// The config.json of the checkpoint that kFp8 makes of one with this config.json; `file` is used in
// messages.
absl::StatusOr<std::string> Fp8ConfigJson(const std::string& config_json, const std::string& file);

}  // namespace marcoro
