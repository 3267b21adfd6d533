// The ops in plain loops, in float, one row after the other: the truth that every other backend is
// compared with. Shapes and meanings are those of Backend; element types follow the tensors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/backend.h"

namespace marcoro::reference {

void Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out);

void RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out);
void AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight, float epsilon,
                const Tensor& out);

size_t WeightBytes(const WeightShape& shape);
void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count, const void* source);
void Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out);

void QuantizeActivations(const Tensor& x, const QuantizedActivations& out);
void MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                       const Tensor& out);

// `dtype` is that of the cached keys and values: kF8E4M3 for KvFormat::kFp8.
void RopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                    absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                    DType dtype, const Tensor& q);
void Attention(const Tensor& q, const AttentionShape& shape,
               absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache, DType dtype,
               const Tensor& out);

// The scale of a key's or value's elements in KvFormat::kFp8.
float KvScale(const float* elements, int32_t count);

void SwiGlu(const Tensor& gate_up, const Tensor& out);

void SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out);

}  // namespace marcoro::reference
