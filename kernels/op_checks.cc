#include "kernels/op_checks.h"

#include <algorithm>

#include "kernels/check.h"

namespace marcoro {
namespace {

void CheckMatrix(const Tensor& tensor, DType dtype) {
  MARCORO_CHECK(tensor.dtype == dtype);
  MARCORO_CHECK(tensor.rows >= 0);
  MARCORO_CHECK(tensor.columns > 0);
  MARCORO_CHECK(tensor.stride >= tensor.columns);
  MARCORO_CHECK(tensor.data != nullptr || tensor.rows == 0);
}

void CheckSameSize(const Tensor& a, const Tensor& b) {
  MARCORO_CHECK(a.rows == b.rows);
  MARCORO_CHECK(a.columns == b.columns);
}

void CheckAttentionShape(const AttentionShape& shape, const KvCacheLayer& cache) {
  MARCORO_CHECK(shape.kv_heads > 0);
  MARCORO_CHECK(shape.heads > 0 && shape.heads % shape.kv_heads == 0);
  MARCORO_CHECK(shape.head_dim > 0 && shape.head_dim % 2 == 0);
  MARCORO_CHECK(shape.window >= 0);
  MARCORO_CHECK(cache.kv_heads == shape.kv_heads);
  MARCORO_CHECK(cache.head_dim == shape.head_dim);
}

// Blocks themselves are checked where they are used: a sequence with a window need not keep those
// before it.
void CheckSequences(absl::Span<const SequenceSpan> sequences, int64_t rows) {
  for (const SequenceSpan& sequence : sequences) {
    MARCORO_CHECK(sequence.first_row >= 0);
    MARCORO_CHECK(sequence.tokens > 0);
    MARCORO_CHECK(int64_t{sequence.first_row} + sequence.tokens <= rows);
    MARCORO_CHECK(sequence.position >= 0);
    MARCORO_CHECK(sequence.blocks != nullptr);
    MARCORO_CHECK(int64_t{sequence.block_count} * kKvBlockTokens >=
                  int64_t{sequence.position} + sequence.tokens);
  }
}

}  // namespace

void CheckWeightShape(const WeightShape& shape) {
  MARCORO_CHECK(shape.dtype == DType::kF8E4M3 || shape.dtype == DType::kBF16 ||
                shape.dtype == DType::kF32);
  MARCORO_CHECK(shape.rows > 0);
  MARCORO_CHECK(shape.columns > 0);
  MARCORO_CHECK(shape.segments > 0 && (shape.segments & (shape.segments - 1)) == 0);
  MARCORO_CHECK(shape.columns % shape.segments == 0);
}

void CheckPackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                     const void* source) {
  CheckWeightShape(weight.shape);
  MARCORO_CHECK(weight.data != nullptr);
  MARCORO_CHECK(source != nullptr);
  MARCORO_CHECK(first_row >= 0 && first_row % 64 == 0);
  MARCORO_CHECK(count > 0 && first_row + count <= weight.shape.rows);
  MARCORO_CHECK(count % 64 == 0 || first_row + count == weight.shape.rows);
}

void CheckStagedRows(const StagedRows& rows, int64_t kept_columns) {
  MARCORO_CHECK(rows.count > 0);
  MARCORO_CHECK(rows.first_column >= 0 && kept_columns > 0);
  MARCORO_CHECK(rows.first_column + kept_columns <= rows.columns);
  MARCORO_CHECK((rows.scales != nullptr) == (rows.dtype == DType::kF8E4M3));
  // Codes are not looked at: they come as the weight holds them.
  MARCORO_CHECK(rows.dtype != DType::kF8E4M3 || rows.columns == kept_columns);
}

void CheckEmbed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) {
  MARCORO_CHECK(table.dtype == DType::kBF16 || table.dtype == DType::kF32);
  CheckMatrix(table, table.dtype);
  CheckMatrix(out, DType::kF32);
  MARCORO_CHECK(out.rows == static_cast<int64_t>(ids.size()));
  MARCORO_CHECK(out.columns == table.columns);
  for (const int32_t id : ids) MARCORO_CHECK(id >= 0 && id < table.rows);
}

void CheckRmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out,
                  DType activations) {
  CheckMatrix(x, DType::kF32);
  CheckMatrix(out, activations);
  CheckSameSize(x, out);
  MARCORO_CHECK(weight != nullptr);
  MARCORO_CHECK(epsilon > 0);
}

void CheckAddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight,
                     float epsilon, const Tensor& out, DType activations) {
  CheckRmsNorm(residual, weight, epsilon, out, activations);
  CheckMatrix(delta, DType::kF32);
  CheckSameSize(residual, delta);
}

void CheckMatmul(const Tensor& x, const PackedWeight& weight, const Tensor& out,
                 DType activations) {
  CheckWeightShape(weight.shape);
  MARCORO_CHECK(weight.data != nullptr);
  MARCORO_CHECK((weight.scales != nullptr) == (weight.shape.dtype == DType::kF8E4M3));
  CheckMatrix(x, activations);
  CheckMatrix(out, DType::kF32);
  MARCORO_CHECK(x.rows == out.rows);
  MARCORO_CHECK(x.columns == weight.shape.columns);
  MARCORO_CHECK(out.columns == weight.shape.rows);
}

void CheckQuantizeActivations(const Tensor& x, const QuantizedActivations& out, DType activations) {
  CheckMatrix(x, activations);
  CheckMatrix(out.codes, DType::kF8E4M3);
  CheckMatrix(out.scales, DType::kF32);
  CheckSameSize(x, out.codes);
  MARCORO_CHECK(out.scales.rows == x.rows);
  MARCORO_CHECK(x.columns % out.scales.columns == 0);
}

void CheckMultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                            const Tensor& out) {
  MARCORO_CHECK(weight.shape.dtype == DType::kF8E4M3);
  CheckMatmul(x.codes, weight, out, DType::kF8E4M3);
  CheckMatrix(x.scales, DType::kF32);
  MARCORO_CHECK(x.scales.rows == x.codes.rows);
  MARCORO_CHECK(x.scales.columns == weight.shape.segments);
}

void CheckRopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                         absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                         const Tensor& q, DType activations) {
  CheckAttentionShape(shape, cache);
  CheckMatrix(qkv, DType::kF32);
  CheckMatrix(rope, DType::kF32);
  CheckMatrix(q, activations);
  MARCORO_CHECK(qkv.columns == int64_t{shape.heads + 2 * shape.kv_heads} * shape.head_dim);
  MARCORO_CHECK(rope.columns == shape.head_dim);
  MARCORO_CHECK(q.rows == qkv.rows);
  MARCORO_CHECK(q.columns == int64_t{shape.heads} * shape.head_dim);
  CheckSequences(sequences, qkv.rows);
  for (const SequenceSpan& sequence : sequences) {
    MARCORO_CHECK(int64_t{sequence.position} + sequence.tokens <= rope.rows);
  }
}

void CheckAttention(const Tensor& q, const AttentionShape& shape,
                    absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                    const Tensor& out, DType activations) {
  CheckAttentionShape(shape, cache);
  CheckMatrix(q, activations);
  CheckMatrix(out, activations);
  CheckSameSize(q, out);
  MARCORO_CHECK(q.columns == int64_t{shape.heads} * shape.head_dim);
  CheckSequences(sequences, q.rows);
}

void CheckSwiGlu(const Tensor& gate_up, const Tensor& out, DType activations) {
  CheckMatrix(gate_up, DType::kF32);
  CheckMatrix(out, activations);
  MARCORO_CHECK(gate_up.rows == out.rows);
  MARCORO_CHECK(gate_up.columns == 2 * out.columns);
}

void CheckGatherRows(const Tensor& from, absl::Span<const int32_t> rows, const Tensor& to) {
  CheckMatrix(from, to.dtype);
  CheckMatrix(to, to.dtype);
  MARCORO_CHECK(from.columns == to.columns);
  MARCORO_CHECK(to.rows == static_cast<int64_t>(rows.size()));
  for (const int32_t row : rows) MARCORO_CHECK(row >= 0 && row < from.rows);
}

void CheckCopyMatrix(const Tensor& from, const Tensor& to) {
  CheckMatrix(from, to.dtype);
  CheckMatrix(to, to.dtype);
  CheckSameSize(from, to);
}

void CheckSummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) {
  CheckMatrix(logits, DType::kF32);
  MARCORO_CHECK(logits.rows == static_cast<int64_t>(out.size()));
}

void CheckBlock(const KvCacheLayer& cache, int32_t block) {
  MARCORO_CHECK(block >= 0 && block < cache.blocks);
}

void CheckVisibleBlocks(const SequenceSpan& sequence, int32_t window, const KvCacheLayer& cache) {
  const int32_t first = window > 0 ? std::max(0, sequence.position - window + 1) : 0;
  const int32_t last = sequence.position + sequence.tokens - 1;
  for (int32_t entry = first / kKvBlockTokens; entry <= last / kKvBlockTokens; ++entry) {
    CheckBlock(cache, sequence.blocks[entry]);
  }
}

}  // namespace marcoro
