#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/element.h"
#include "kernels/reference/kv_layout.h"
#include "kernels/reference/ops.h"

namespace marcoro::reference {
namespace {

// The elements of one position's key or value.
std::vector<float> CachedRow(const KvCacheLayer& cache, DType dtype, const SequenceSpan& sequence,
                             int32_t position, int32_t kv_head, KvPart part) {
  const KvRow row = FindKvRow(cache, dtype, sequence, position, kv_head, part);
  std::vector<float> elements = ToFloats(row.elements, dtype, cache.head_dim);
  if (row.scale != nullptr) {
    for (float& element : elements) element *= *row.scale;
  }
  return elements;
}

// One query head at one position: the textbook formula over the positions that it sees, oldest
// first.
std::vector<float> Attend(const std::vector<float>& query, const KvCacheLayer& cache, DType dtype,
                          const SequenceSpan& sequence, int32_t kv_head, int32_t position,
                          int32_t window) {
  const int32_t first = window > 0 ? std::max(0, position - window + 1) : 0;
  const int32_t head_dim = cache.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

  std::vector<float> scores;
  float max = -std::numeric_limits<float>::infinity();
  for (int32_t p = first; p <= position; ++p) {
    const std::vector<float> key = CachedRow(cache, dtype, sequence, p, kv_head, KvPart::kKeys);
    float dot = 0;
    for (int32_t i = 0; i < head_dim; ++i) dot += query[i] * key[i];
    scores.push_back(dot * scale);
    max = std::max(max, scores.back());
  }

  float sum = 0;
  std::vector<float> result(static_cast<size_t>(head_dim), 0.0f);
  for (int32_t p = first; p <= position; ++p) {
    const float probability = std::exp(scores[p - first] - max);
    const std::vector<float> value = CachedRow(cache, dtype, sequence, p, kv_head, KvPart::kValues);
    sum += probability;
    for (int32_t i = 0; i < head_dim; ++i) result[i] += probability * value[i];
  }
  for (float& element : result) element /= sum;
  return result;
}

}  // namespace

void Attention(const Tensor& q, const AttentionShape& shape,
               absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache, DType dtype,
               const Tensor& out) {
  const int32_t heads_per_kv_head = shape.heads / shape.kv_heads;
  for (const SequenceSpan& sequence : sequences) {
    for (int32_t t = 0; t < sequence.tokens; ++t) {
      const int32_t row = sequence.first_row + t;
      const std::vector<float> queries = RowToFloats(q, row);
      for (int32_t h = 0; h < shape.heads; ++h) {
        const auto begin = queries.begin() + int64_t{h} * shape.head_dim;
        const std::vector<float> attended =
            Attend({begin, begin + shape.head_dim}, cache, dtype, sequence, h / heads_per_kv_head,
                   sequence.position + t, shape.window);
        for (int32_t i = 0; i < shape.head_dim; ++i) {
          Store(attended[i], out.dtype, out.RowBytes(row), int64_t{h} * shape.head_dim + i);
        }
      }
    }
  }
}

}  // namespace marcoro::reference
