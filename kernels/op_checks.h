// The shapes of every op, checked before any kernel touches memory: one wrong size is a bug of the
// caller and ends the process with the condition that failed.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/row_stage.h"

namespace marcoro {

void CheckWeightShape(const WeightShape& shape);
void CheckPackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                     const void* source);
void CheckStagedRows(const StagedRows& rows, int64_t kept_columns);
void CheckEmbed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out);
void CheckRmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out,
                  DType activations);
void CheckAddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight,
                     float epsilon, const Tensor& out, DType activations);
void CheckMatmul(const Tensor& x, const PackedWeight& weight, const Tensor& out, DType activations);
void CheckQuantizeActivations(const Tensor& x, const QuantizedActivations& out, DType activations);
void CheckMultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                            const Tensor& out);
void CheckRopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                         absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                         const Tensor& q, DType activations);
void CheckAttention(const Tensor& q, const AttentionShape& shape,
                    absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                    const Tensor& out, DType activations);
void CheckSwiGlu(const Tensor& gate_up, const Tensor& out, DType activations);
void CheckGatherRows(const Tensor& from, absl::Span<const int32_t> rows, const Tensor& to);
void CheckCopyMatrix(const Tensor& from, const Tensor& to);
void CheckSummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out);
void CheckBlock(const KvCacheLayer& cache, int32_t block);
// Of the blocks that the sequence's queries see.
void CheckVisibleBlocks(const SequenceSpan& sequence, int32_t window, const KvCacheLayer& cache);

}  // namespace marcoro
