// The weights of one tensor-parallel rank, as the transformer uses them. worker/weights fills them.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "worker/model/config.h"

namespace marcoro {

// Which part of the model a rank holds. Heads, KV heads and feed-forward columns are cut into
// world_size equal neighbouring parts; vocabulary rows into parts of vocabulary_rows() (the last
// ones may be shorter).
struct Shard {
  int rank = 0;
  int world_size = 1;
};

struct LayerParameters {
  std::vector<float> attention_norm;  // (H)
  PackedWeight
      qkv;  // (q_heads * D + 2 * kv_heads * D, H): this rank's q rows, then k, then v; one segment
  PackedWeight o_proj;          // (H, q_heads * D): V / world_size segments
  std::vector<float> ffn_norm;  // (H)
  PackedWeight gate_up;  // (2 * F / world_size, H): this rank's gate rows, then up; one segment
  PackedWeight down;     // (H, F / world_size): V / world_size segments
};

struct ModelParameters {
  Tensor embedding;  // (V, H) BF16, or F32 with float32 activations; whole on every rank
  std::vector<LayerParameters> layers;
  std::vector<float> final_norm;  // (H)
  PackedWeight lm_head;  // (LogitShardRows, H), unquantized; rows past the vocabulary are zero

  std::vector<Buffer> storage;  // owns what the views above point to
};

// Rows of lm_head that each rank holds: ⌈V / world_size⌉.
int64_t LogitShardRows(const ModelConfig& config, int world_size);

// Formats of a layer's linear weights: each kF8E4M3, kBF16 or kF32.
struct LayerDTypes {
  DType qkv = DType::kF8E4M3;
  DType o_proj = DType::kF8E4M3;
  DType gate_up = DType::kF8E4M3;
  DType down = DType::kF8E4M3;
};

// Allocates every tensor of the shard in the backend's layout, zeroed. linear_dtypes holds one
// entry for each layer; the embedding and lm_head are BF16, or F32 if the backend's activations
// are.
absl::StatusOr<ModelParameters> AllocateParameters(const ModelConfig& config, const Shard& shard,
                                                   absl::Span<const LayerDTypes> linear_dtypes,
                                                   Backend& backend);
// The same with one format for all linear weights.
absl::StatusOr<ModelParameters> AllocateParameters(const ModelConfig& config, const Shard& shard,
                                                   DType linear_dtype, Backend& backend);

// INVALID_ARGUMENT (naming the degrees that are possible) unless world_size is a power of two <=
// reduction_segments().
absl::Status CheckTensorParallel(const ModelConfig& config, int world_size);

}  // namespace marcoro
