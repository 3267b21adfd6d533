#include "worker/weights/load_plan.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/check.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/weight_scales.h"

namespace marcoro {
namespace {

absl::Status CheckTensor(const TensorSource& source, const ModelTensor& expected) {
  const TensorInfo* tensor = source.Find(expected.name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(source.Description(), ": tensor ", expected.name, " is missing"));
  }
  if (tensor->shape != expected.shape) {
    return absl::InvalidArgumentError(absl::StrCat(
        tensor->origin, ": tensor ", tensor->name, " has shape ", FormatShape(tensor->shape),
        ", the config needs ", FormatShape(expected.shape)));
  }
  if (!IsReadable(source, *tensor)) {
    return absl::InvalidArgumentError(
        absl::StrCat(tensor->origin, ": tensor ", tensor->name, " has dtype ", tensor->dtype,
                     ", which cannot be loaded (BF16, F16 and F32 can)"));
  }
  return absl::OkStatus();
}

// Whether a tensor holds the scales of an FP8 weight, or of its inputs.
bool IsScale(const TensorSource& source, const TensorInfo& tensor) {
  absl::string_view module = tensor.name;
  for (const char* suffix : {".weight_scale", ".weight_scale_inv", ".input_scale"}) {
    if (!absl::ConsumeSuffix(&module, suffix)) continue;
    const TensorInfo* weight = source.Find(absl::StrCat(module, ".weight"));
    return weight != nullptr && weight->dtype == kE4M3Name;
  }
  return false;
}

// The stored tensors that are stacked into each weight of a layer.
std::vector<std::string> QkvNames(int layer) {
  return {LayerTensorName(layer, "self_attn.q_proj"), LayerTensorName(layer, "self_attn.k_proj"),
          LayerTensorName(layer, "self_attn.v_proj")};
}

std::vector<std::string> GateUpNames(int layer) {
  return {LayerTensorName(layer, "mlp.gate_proj"), LayerTensorName(layer, "mlp.up_proj")};
}

// Adds jobs for the weights of one shard.
class Planner {
 public:
  Planner(const TensorSource& source, const Shard& shard, std::vector<LoadJob>& jobs)
      : source_(source), shard_(shard), jobs_(jobs) {}

  void Matrix(std::string_view name, const Tensor& matrix) {
    LoadJob job;
    job.matrix = matrix;
    job.ranges.push_back({source_.Find(name), 0, matrix.rows});
    jobs_.push_back(std::move(job));
  }

  // This rank's equal part of the rows of each tensor, one after the other.
  void ColumnParallel(const std::vector<std::string>& names, const PackedWeight& weight) {
    LoadJob job;
    job.weight = weight;
    int64_t total = 0;
    for (const std::string& name : names) {
      const TensorInfo* tensor = source_.Find(name);
      const int64_t rows = tensor->rows() / shard_.world_size;
      job.ranges.push_back({tensor, shard_.rank * rows, rows});
      total += rows;
    }
    MARCORO_CHECK(total == weight.shape.rows);
    jobs_.push_back(std::move(job));
  }

  // Every row, this rank's part of its columns.
  void RowParallel(const std::string& name, const PackedWeight& weight) {
    LoadJob job;
    job.weight = weight;
    job.first_column = shard_.rank * weight.shape.columns;
    job.ranges.push_back({source_.Find(name), 0, weight.shape.rows});
    jobs_.push_back(std::move(job));
  }

  // Neighbouring vocabulary rows; the last ranks may have fewer, or none.
  void LogitShard(std::string_view name, int64_t vocabulary, const PackedWeight& weight) {
    LoadJob job;
    job.weight = weight;
    const int64_t first = std::min(shard_.rank * weight.shape.rows, vocabulary);
    const int64_t last = std::min(first + weight.shape.rows, vocabulary);
    if (first < last) job.ranges.push_back({source_.Find(name), first, last - first});
    jobs_.push_back(std::move(job));
  }

 private:
  const TensorSource& source_;
  const Shard shard_;
  std::vector<LoadJob>& jobs_;
};

}  // namespace

bool IsReadable(const TensorSource& source, const TensorInfo& tensor) {
  const std::string& dtype = tensor.dtype;
  // Codes without scales would be numbers to quantize, if they were numbers.
  if (dtype == kE4M3Name) return source.FormOf(tensor) != Fp8Form::kQuantize;
  return dtype == "BF16" || dtype == "F16" || dtype == "F32";
}

absl::Status CheckTensors(const TensorSource& source, const ModelConfig& config,
                          std::vector<std::string>* unused) {
  absl::flat_hash_set<std::string> expected_names;
  for (const ModelTensor& expected : ModelTensors(config)) {
    if (absl::Status status = CheckTensor(source, expected); !status.ok()) return status;
    expected_names.insert(expected.name);
  }
  for (const TensorInfo* tensor : source.Tensors()) {
    if (expected_names.contains(tensor->name)) continue;
    if (absl::EndsWith(tensor->name, ".bias")) {
      return absl::InvalidArgumentError(
          absl::StrCat(tensor->origin, ": tensor ", tensor->name, ": biases are not supported"));
    }
    if (!IsScale(source, *tensor)) unused->push_back(tensor->name);
  }
  return absl::OkStatus();
}

std::vector<LayerDTypes> PlanLinearDTypes(const TensorSource& source, const ModelConfig& config,
                                          DType linear_dtype) {
  const auto dtype_of = [&](const std::vector<std::string>& names) {
    if (linear_dtype != DType::kF8E4M3) return linear_dtype;
    const bool all_fp8 = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
      return source.FormOf(*source.Find(name)) != Fp8Form::kNone;
    });
    return all_fp8 ? DType::kF8E4M3 : DType::kBF16;
  };
  std::vector<LayerDTypes> layers;
  for (int32_t i = 0; i < config.layers; ++i) {
    layers.push_back({.qkv = dtype_of(QkvNames(i)),
                      .o_proj = dtype_of({LayerTensorName(i, "self_attn.o_proj")}),
                      .gate_up = dtype_of(GateUpNames(i)),
                      .down = dtype_of({LayerTensorName(i, "mlp.down_proj")})});
  }
  return layers;
}

std::vector<LoadJob> PlanJobs(const TensorSource& source, const ModelConfig& config,
                              const Shard& shard, const ModelParameters& parameters) {
  std::vector<LoadJob> jobs;
  Planner planner(source, shard, jobs);
  planner.Matrix(kEmbeddingName, parameters.embedding);
  for (int32_t i = 0; i < config.layers; ++i) {
    const LayerParameters& layer = parameters.layers[static_cast<size_t>(i)];
    planner.ColumnParallel(QkvNames(i), layer.qkv);
    planner.RowParallel(LayerTensorName(i, "self_attn.o_proj"), layer.o_proj);
    planner.ColumnParallel(GateUpNames(i), layer.gate_up);
    planner.RowParallel(LayerTensorName(i, "mlp.down_proj"), layer.down);
  }
  planner.LogitShard(config.tied_embeddings ? kEmbeddingName : kLmHeadName, config.vocabulary_size,
                     parameters.lm_head);
  return jobs;
}

std::vector<ChunkPart> PartsOf(const LoadJob& job, int64_t first, int64_t count) {
  std::vector<ChunkPart> parts;
  int64_t range_begin = 0;  // the destination row at which the range begins
  for (const RowRange& range : job.ranges) {
    const int64_t begin = std::max(first, range_begin);
    const int64_t end = std::min(first + count, range_begin + range.rows);
    if (begin < end) {
      parts.push_back(
          {{range.tensor, range.first_row + begin - range_begin, end - begin}, begin - first});
    }
    range_begin += range.rows;
  }
  return parts;
}

}  // namespace marcoro
