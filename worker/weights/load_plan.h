// What a rank has to load: which stored rows and columns become which rows of which weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/model/config.h"
#include "worker/model/parameters.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

// Rows of a stored tensor that become neighbouring rows of a weight.
struct RowRange {
  const TensorInfo* tensor = nullptr;
  int64_t first_row = 0;
  int64_t rows = 0;

  uint64_t bytes() const {
    return static_cast<uint64_t>(rows) * (tensor->bytes / static_cast<uint64_t>(tensor->rows()));
  }
};

// One destination and the stored rows it is stacked from. Rows past the last of them are zero.
struct LoadJob {
  std::vector<RowRange> ranges;
  int64_t first_column = 0;  // of the stored rows: the destination holds columns from here on
  Tensor matrix;             // the destination, unless `weight` is
  PackedWeight weight;

  bool packed() const { return weight.data != nullptr; }
  DType dtype() const { return packed() ? weight.shape.dtype : matrix.dtype; }
  int64_t rows() const { return packed() ? weight.shape.rows : matrix.rows; }
  int64_t columns() const { return packed() ? weight.shape.columns : matrix.columns; }
};

// Whether ReadRows can read the tensor: BF16, F16, F32, or FP8 codes that have scales.
bool IsReadable(const TensorSource& source, const TensorInfo& tensor);

// Checks that the source has every tensor of the model in its right shape and a readable type, and
// no bias. What else it has is named in *unused, but for the scales of quantized linear weights and
// of their inputs. INVALID_ARGUMENT, naming origin and tensor, otherwise.
absl::Status CheckTensors(const TensorSource& source, const ModelConfig& config,
                          std::vector<std::string>* unused);

// The format in which each layer's linear weights are held where `linear_dtype` is asked for: that,
// but BF16 in place of FP8 for a weight one of whose tensors has no FP8 form.
std::vector<LayerDTypes> PlanLinearDTypes(const TensorSource& source, const ModelConfig& config,
                                          DType linear_dtype);

// Jobs for everything but the norms, in the order of use. The source has passed CheckTensors.
std::vector<LoadJob> PlanJobs(const TensorSource& source, const ModelConfig& config,
                              const Shard& shard, const ModelParameters& parameters);

// Rows of a stored tensor that become rows of a chunk, from its row first_row on.
struct ChunkPart {
  RowRange range;
  int64_t first_row = 0;
};

// What the destination's rows [first, first + count) are made of, in order. Rows behind the last
// part are zero.
std::vector<ChunkPart> PartsOf(const LoadJob& job, int64_t first, int64_t count);

}  // namespace marcoro
