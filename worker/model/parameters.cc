#include "worker/model/parameters.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"

namespace marcoro {
namespace {

// Allocates tensors and keeps their memory in `storage`. The first failure is kept. Without storage
// nothing is allocated, and only the bytes are counted.
class Allocator {
 public:
  Allocator(Backend& backend, std::vector<Buffer>* storage)
      : backend_(backend), storage_(storage) {}

  const absl::Status& status() const { return status_; }
  size_t bytes() const { return bytes_; }

  PackedWeight Weight(const WeightShape& shape) {
    PackedWeight weight;
    weight.shape = shape;
    weight.data = Take(backend_.WeightBytes(shape));
    if (shape.dtype == DType::kF8E4M3) {
      weight.scales = static_cast<float*>(Take(static_cast<size_t>(shape.rows) * sizeof(float)));
    }
    return weight;
  }

  Tensor Matrix(DType dtype, int64_t rows, int64_t columns) {
    return Tensor(Take(static_cast<size_t>(rows * columns) * SizeOf(dtype)), dtype, rows, columns);
  }

 private:
  void* Take(size_t bytes) {
    bytes_ += bytes;
    if (!status_.ok() || storage_ == nullptr) return nullptr;
    absl::StatusOr<Buffer> buffer = backend_.Allocate(bytes);
    if (!buffer.ok()) {
      status_ = buffer.status();
      return nullptr;
    }
    storage_->push_back(*std::move(buffer));
    return storage_->back().data();
  }

  Backend& backend_;
  std::vector<Buffer>* storage_;
  size_t bytes_ = 0;
  absl::Status status_;
};

LayerParameters AllocateLayer(const ModelConfig& config, int world_size, const LayerDTypes& dtypes,
                              Allocator& allocator) {
  const int64_t hidden = config.hidden_size;
  const int64_t query = int64_t{config.heads} / world_size * config.head_dim;
  const int64_t key_value = int64_t{config.kv_heads} / world_size * config.head_dim;
  const int64_t ffn = int64_t{config.ffn_size} / world_size;
  const int segments = config.reduction_segments() / world_size;
  LayerParameters layer;
  layer.attention_norm.resize(static_cast<size_t>(hidden));
  layer.ffn_norm.resize(static_cast<size_t>(hidden));
  layer.qkv = allocator.Weight({dtypes.qkv, query + 2 * key_value, hidden, 1});
  layer.o_proj = allocator.Weight({dtypes.o_proj, hidden, query, segments});
  layer.gate_up = allocator.Weight({dtypes.gate_up, 2 * ffn, hidden, 1});
  layer.down = allocator.Weight({dtypes.down, hidden, ffn, segments});
  return layer;
}

ModelParameters AllocateAll(const ModelConfig& config, int world_size,
                            absl::Span<const LayerDTypes> linear_dtypes, DType table_dtype,
                            Allocator& allocator) {
  ModelParameters parameters;
  parameters.embedding = allocator.Matrix(table_dtype, config.vocabulary_size, config.hidden_size);
  for (const LayerDTypes& dtypes : linear_dtypes) {
    parameters.layers.push_back(AllocateLayer(config, world_size, dtypes, allocator));
  }
  parameters.final_norm.resize(static_cast<size_t>(config.hidden_size));
  parameters.lm_head =
      allocator.Weight({table_dtype, LogitShardRows(config, world_size), config.hidden_size, 1});
  return parameters;
}

// Said of the whole shard before any of it is allocated: what one tensor lacks tells little.
absl::Status CheckMemory(size_t needed, const Backend& backend) {
  const size_t free = backend.AvailableMemory();
  if (needed <= free) return absl::OkStatus();
  constexpr double kGib = 1 << 30;
  return absl::ResourceExhaustedError(
      absl::StrFormat("the weights of this rank need %.2f GiB, %.2f GiB free: missing %.2f GiB",
                      static_cast<double>(needed) / kGib, static_cast<double>(free) / kGib,
                      static_cast<double>(needed - free) / kGib));
}

bool HasDType(absl::Span<const LayerDTypes> layers, DType dtype) {
  return std::any_of(layers.begin(), layers.end(), [dtype](const LayerDTypes& layer) {
    return layer.qkv == dtype || layer.o_proj == dtype || layer.gate_up == dtype ||
           layer.down == dtype;
  });
}

}  // namespace

int64_t LogitShardRows(const ModelConfig& config, int world_size) {
  return (int64_t{config.vocabulary_size} + world_size - 1) / world_size;
}

absl::StatusOr<ModelParameters> AllocateParameters(const ModelConfig& config, const Shard& shard,
                                                   DType linear_dtype, Backend& backend) {
  const std::vector<LayerDTypes> linear_dtypes(
      static_cast<size_t>(config.layers),
      {.qkv = linear_dtype, .o_proj = linear_dtype, .gate_up = linear_dtype, .down = linear_dtype});
  return AllocateParameters(config, shard, linear_dtypes, backend);
}

absl::StatusOr<ModelParameters> AllocateParameters(const ModelConfig& config, const Shard& shard,
                                                   absl::Span<const LayerDTypes> linear_dtypes,
                                                   Backend& backend) {
  if (absl::Status status = CheckTensorParallel(config, shard.world_size); !status.ok()) {
    return status;
  }
  MARCORO_CHECK(shard.rank >= 0 && shard.rank < shard.world_size);
  MARCORO_CHECK(!HasDType(linear_dtypes, DType::kF16));
  MARCORO_CHECK(linear_dtypes.size() == static_cast<size_t>(config.layers));
  const bool reference = backend.name().substr(0, 9) == "reference";
  if (HasDType(linear_dtypes, DType::kF32) && !reference) {
    return absl::InvalidArgumentError(absl::StrCat(
        "float32 weights need the reference backend, not ", std::string(backend.name())));
  }
  const DType table_dtype = backend.activation_dtype();
  Allocator counter(backend, /*storage=*/nullptr);
  AllocateAll(config, shard.world_size, linear_dtypes, table_dtype, counter);
  if (absl::Status status = CheckMemory(counter.bytes(), backend); !status.ok()) return status;
  std::vector<Buffer> storage;
  Allocator allocator(backend, &storage);
  ModelParameters parameters =
      AllocateAll(config, shard.world_size, linear_dtypes, table_dtype, allocator);
  if (!allocator.status().ok()) return allocator.status();
  parameters.storage = std::move(storage);
  return parameters;
}

absl::Status CheckTensorParallel(const ModelConfig& config, int world_size) {
  const int most = config.reduction_segments();
  const bool power_of_two = world_size > 0 && (world_size & (world_size - 1)) == 0;
  if (power_of_two && world_size <= most) return absl::OkStatus();
  std::string possible = "1";
  for (int degree = 2; degree <= most; degree *= 2) absl::StrAppend(&possible, ", ", degree);
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor-parallel degree ", world_size, " is not possible for this model (", config.kv_heads,
      " KV heads, feed-forward size ", config.ffn_size, "); possible: ", possible));
}

}  // namespace marcoro
