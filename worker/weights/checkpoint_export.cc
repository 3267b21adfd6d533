#include "worker/weights/checkpoint_export.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/check.h"
#include "worker/model/json_nesting.h"
#include "worker/weights/load_plan.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/parallel_state.h"
#include "worker/weights/quantize.h"
#include "worker/weights/weight_scales.h"

namespace marcoro {
namespace {

constexpr int64_t kChunkElements = 256 * 1024;  // that one thread reads and writes at a time

// Type of a tensor that CheckTensors has passed and that is not pre-quantized.
DType TypeOf(const TensorInfo& tensor) {
  if (tensor.dtype == "BF16") return DType::kBF16;
  if (tensor.dtype == "F16") return DType::kF16;
  MARCORO_CHECK(tensor.dtype == "F32");
  return DType::kF32;
}

// Rows as float32, and as the bytes that are written.
struct Scratch {
  std::vector<float> numbers;
  std::vector<char> bytes;
  std::vector<char> scales;
};

// Numbers in a type that holds each of them. False if one is not finite.
bool Encode(DType dtype, const float* numbers, int64_t count, char* out) {
  switch (dtype) {
    case DType::kBF16:
      return RoundToBFloat16(numbers, count, reinterpret_cast<BFloat16*>(out));
    case DType::kF16:
      return RoundToFloat16(numbers, count, reinterpret_cast<uint16_t*>(out));
    default:
      std::copy_n(reinterpret_cast<const char*>(numbers),
                  static_cast<size_t>(count) * sizeof(float), out);
      return AllFinite(numbers, count);
  }
}

absl::Status NotFinite(const TensorInfo& tensor, int64_t row) {
  return absl::InvalidArgumentError(
      absl::StrCat(tensor.origin, ": tensor ", tensor.name, ": row ", row,
                   " holds a number that is not finite (NaN, infinite or too large)"));
}

uint64_t BytesOf(const std::vector<ExportTensor>& tensors) {
  uint64_t bytes = 0;
  for (const ExportTensor& tensor : tensors) bytes += tensor.source->bytes;
  return bytes;
}

// Fills the files of one writer.
class Exporter {
 public:
  Exporter(TensorSource& source, const ExportOptions& options, uint64_t total)
      : source_(source), options_(options), total_(total) {}

  absl::Status WriteTensor(const ExportTensor& tensor, SafetensorsWriter& file) {
    const TensorInfo& info = *tensor.source;
    if (absl::Status status = source_.Prepare(info, options_.parallel); !status.ok()) return status;
    const int64_t chunk_rows =
        std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, info.columns()));
    const int64_t chunks = (info.rows() + chunk_rows - 1) / chunk_rows;
    FirstError error;
    options_.parallel(chunks, [&](int64_t chunk) {
      if (!error.ok()) return;
      const int64_t first = chunk * chunk_rows;
      const int64_t count = std::min(chunk_rows, info.rows() - first);
      std::unique_ptr<Scratch> scratch = scratch_.Take();
      absl::Status status = WriteRows(tensor, first, count, *scratch, file);
      scratch_.Return(std::move(scratch));
      if (!status.ok()) error.Set(std::move(status));
    });
    return error.status();
  }

 private:
  absl::Status WriteRows(const ExportTensor& tensor, int64_t first, int64_t count, Scratch& scratch,
                         SafetensorsWriter& file) {
    if (options_.cancelled != nullptr && options_.cancelled->load()) {
      return absl::CancelledError("interrupted");
    }
    const TensorInfo& info = *tensor.source;
    scratch.numbers.resize(static_cast<size_t>(count * info.columns()));
    absl::Status status = source_.ReadRows(info, first, count, scratch.numbers.data());
    if (!status.ok()) return status;
    const size_t element = tensor.quantized ? 1 : SizeOf(TypeOf(info));
    const size_t row_bytes = static_cast<size_t>(info.columns()) * element;
    const size_t scale_bytes = SizeOf(TypeOf(info));
    scratch.bytes.resize(static_cast<size_t>(count) * row_bytes);
    scratch.scales.resize(static_cast<size_t>(count) * scale_bytes);
    for (int64_t i = 0; i < count; ++i) {
      const float* numbers = scratch.numbers.data() + i * info.columns();
      char* out = scratch.bytes.data() + static_cast<size_t>(i) * row_bytes;
      char* scale = scratch.scales.data() + static_cast<size_t>(i) * scale_bytes;
      const bool finite = tensor.quantized ? QuantizeInto(info, numbers, out, scale)
                                           : Encode(TypeOf(info), numbers, info.columns(), out);
      if (!finite) return NotFinite(info, first + i);
    }
    status = file.Write(tensor.output, static_cast<uint64_t>(first) * row_bytes,
                        scratch.bytes.data(), scratch.bytes.size());
    if (status.ok() && tensor.quantized) {
      status = file.Write(tensor.output + 1, static_cast<uint64_t>(first) * scale_bytes,
                          scratch.scales.data(), scratch.scales.size());
    }
    if (status.ok()) AddProgress(RowRange{&info, first, count}.bytes());
    return status;
  }

  // The codes fit the scale as it is stored, not the one before its rounding.
  static bool QuantizeInto(const TensorInfo& info, const float* row, char* codes, char* scale) {
    float value = 0;
    if (!RowScaleIn(TypeOf(info), row, info.columns(), &value)) return false;
    QuantizeRow(row, info.columns(), value, reinterpret_cast<uint8_t*>(codes));
    return Encode(TypeOf(info), &value, 1, scale);
  }

  void AddProgress(uint64_t bytes) {
    absl::MutexLock lock(&mutex_);
    done_ += bytes;
    if (options_.progress) options_.progress(done_, total_);
  }

  TensorSource& source_;
  const ExportOptions& options_;
  const uint64_t total_;
  Pool<Scratch> scratch_;
  absl::Mutex mutex_;
  uint64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

absl::StatusOr<ExportPlan> PlanExport(const TensorSource& source, const ModelConfig& config,
                                      ExportFormat format, uint64_t shard_bytes) {
  std::vector<std::string> unused;
  if (absl::Status status = CheckTensors(source, config, &unused); !status.ok()) return status;
  ExportPlan plan;
  uint64_t filled = 0;
  for (const ModelTensor& expected : ModelTensors(config)) {
    const TensorInfo* tensor = source.Find(expected.name);
    if (source.FormOf(*tensor) != Fp8Form::kQuantize) {
      return absl::InvalidArgumentError(
          absl::StrCat(source.Description(), ": the weights are quantized already"));
    }
    const bool quantized = format == ExportFormat::kFp8 && expected.role == TensorRole::kLinear;
    std::vector<OutputTensor> outputs = {
        {tensor->name, quantized ? kE4M3Name : tensor->dtype, tensor->shape}};
    if (quantized) {
      outputs.push_back({absl::StrCat(tensor->name, "_scale"), tensor->dtype, {tensor->rows(), 1}});
    }
    uint64_t bytes = 0;
    for (const OutputTensor& output : outputs) bytes += output.bytes();
    if (plan.shards.empty() || (filled > 0 && filled + bytes > shard_bytes)) {
      plan.shards.emplace_back();
      plan.tensors.emplace_back();
      filled = 0;
    }
    filled += bytes;
    plan.tensors.back().push_back({tensor, quantized, plan.shards.back().size()});
    std::move(outputs.begin(), outputs.end(), std::back_inserter(plan.shards.back()));
  }
  return plan;
}

absl::Status ExportTensors(TensorSource& source, const ExportPlan& plan,
                           const ExportOptions& options, CheckpointWriter& writer) {
  uint64_t total = 0;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    if (!writer.IsFinished(i)) total += BytesOf(plan.tensors[i]);
  }
  Exporter exporter(source, options, total);
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    if (writer.IsFinished(i)) continue;
    absl::StatusOr<std::unique_ptr<SafetensorsWriter>> file = writer.OpenShard(i);
    if (!file.ok()) return file.status();
    const std::vector<ExportTensor>& tensors = plan.tensors[i];
    for (size_t t = 0; t < tensors.size(); ++t) {
      if (t + 1 < tensors.size()) {
        const TensorInfo& next = *tensors[t + 1].source;
        source.Prefetch(next, 0, next.rows());
      }
      absl::Status status = exporter.WriteTensor(tensors[t], **file);
      if (!status.ok()) return status;
    }
    // Before the shard gets its name, which a later run would take for right.
    if (absl::Status status = source.CheckUnchanged(); !status.ok()) return status;
    if (absl::Status status = writer.FinishShard(i, *std::move(file)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Fp8ConfigJson(const std::string& config_json, const std::string& file) {
  using Json = nlohmann::ordered_json;
  if (absl::Status status = CheckJsonNesting(config_json, file); !status.ok()) return status;
  Json config = Json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": not a JSON object"));
  }
  const auto scheme = [](const char* strategy, bool dynamic) {
    return Json{{"num_bits", 8},
                {"type", "float"},
                {"strategy", strategy},
                {"symmetric", true},
                {"dynamic", dynamic}};
  };
  config["quantization_config"] = {
      {"quant_method", "compressed-tensors"},
      {"format", "float-quantized"},
      {"quantization_status", "compressed"},
      {"ignore", {"lm_head"}},
      {"kv_cache_scheme", nullptr},
      {"config_groups",
       {{"group_0",
         {{"targets", {"Linear"}},
          {"weights", scheme("channel", false)},
          // For servers that also quantize activations: each token's own scale.
          {"input_activations", scheme("token", true)}}}}}};
  return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace marcoro
