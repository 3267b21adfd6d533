// Linear layers cut over the ranks of a group. Each kind owns its way of being cut; see DESIGN's
// numerics contract for why the bits do not depend on the number of ranks.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/collective/communicator.h"

namespace marcoro {

struct NormParameters {
  const float* weight;  // (N)
  float epsilon;
};

// The product of a linear layer on one rank. Where the backend quantizes activations, inputs of
// E4M3 weights are quantized first, each of the product's segments with scales of its own, so that
// no rank has to know of another's inputs; BF16 weights take inputs as they are.
class LinearProduct {
 public:
  // Room for inputs of up to `tokens` rows, `columns` wide, in `segments` segments, if the backend
  // quantizes.
  static absl::StatusOr<LinearProduct> Create(Backend& backend, int64_t tokens, int64_t columns,
                                              int segments);
  // Bytes of the backend's memory that Create takes.
  static size_t Bytes(const Backend& backend, int64_t tokens, int64_t columns, int segments);

  // out (T, N) F32 = x (T, K) act · weightᵀ.
  void Multiply(const Tensor& x, const PackedWeight& weight, const Tensor& out) const;

  // The same in two steps, for weights of one segment: x is quantized as soon as it is there, or
  // by the norm that makes it (as Backend::AddRmsNorm). It stays prepared until the next Multiply
  // or preparation.
  void Prepare(const Tensor& x) const;
  void AddRmsNormAndPrepare(const Tensor& residual, const Tensor& delta, const NormParameters& norm,
                            const Tensor& x) const;
  void MultiplyPrepared(const Tensor& x, const PackedWeight& weight, const Tensor& out) const;

 private:
  explicit LinearProduct(Backend& backend) : backend_(&backend) {}

  // Whether products of the weight take quantized inputs.
  bool Quantizes(const PackedWeight& weight) const;
  // Room for x, quantized in so many segments.
  QuantizedActivations QuantizedOf(const Tensor& x, int64_t segments) const;

  Backend* backend_;
  Buffer codes_;   // (tokens, columns) E4M3
  Buffer scales_;  // (tokens, segments) F32
};

// Output rows are cut: every rank computes its own outputs from the whole input, which has been
// prepared; nothing is exchanged. x (T, K) act, weight (N / world_size, K), out (T, N / world_size)
// F32.
void ColumnParallel(const LinearProduct& product, const Tensor& x, const PackedWeight& weight,
                    const Tensor& out);

// Inputs are cut: every rank computes a partial sum over its own columns, as the lower levels of
// the segment tree; the all-reduce is the top of that tree. x (T, K / world_size) act, weight (N, K
// / world_size), product (T, N) F32 dense. The residual (T, N) F32 += product, then normed (T, N)
// act = RmsNorm(residual), in one with the all-reduce where the communicator can; normed is
// prepared for ColumnParallel, product is unspecified afterwards.
absl::Status RowParallelAddRmsNorm(const LinearProduct& linear, Communicator& communicator,
                                   const Tensor& x, const PackedWeight& weight,
                                   const Tensor& product, const Tensor& residual,
                                   const NormParameters& norm, const Tensor& normed);

// The output projection, cut over vocabulary rows and gathered on rank 0.
class VocabularyParallel {
 public:
  // Room for up to max_rows rows. shard_rows is LogitShardRows().
  static absl::StatusOr<VocabularyParallel> Create(Backend& backend, Communicator& communicator,
                                                   int64_t vocabulary_size, int64_t shard_rows,
                                                   int64_t max_rows);

  // x (R, H) act → logits of R rows on rank 0.
  absl::Status Apply(const Tensor& x, const PackedWeight& weight);
  // The first rows that Apply last made, (rows, V) F32, on rank 0; an empty tensor elsewhere.
  Tensor Logits(int64_t rows) const;

 private:
  VocabularyParallel(Backend& backend, Communicator& communicator, int64_t vocabulary_size,
                     int64_t shard_rows)
      : backend_(&backend),
        communicator_(&communicator),
        vocabulary_size_(vocabulary_size),
        shard_rows_(shard_rows) {}

  Backend* backend_;
  Communicator* communicator_;
  int64_t vocabulary_size_;
  int64_t shard_rows_;
  Buffer shard_;     // (R, shard_rows) F32
  Buffer gathered_;  // (world_size, R, shard_rows) F32, rank 0 of a larger group only
  Buffer logits_;    // (R, V) F32, rank 0 of a larger group only
};

}  // namespace marcoro
