#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/kv_layout.h"
#include "kernels/reference/ops.h"

namespace marcoro::reference {
namespace {

// `in` (D) with elements i and i + D/2 turned by the angle whose cosine is table[i] and whose sine
// is table[i + D/2].
std::vector<float> Rotated(const float* in, const float* table, int32_t head_dim) {
  const int32_t half = head_dim / 2;
  std::vector<float> out(static_cast<size_t>(head_dim));
  for (int32_t i = 0; i < half; ++i) {
    const float cosine = table[i];
    const float sine = table[i + half];
    out[i] = in[i] * cosine - in[i + half] * sine;
    out[i + half] = in[i + half] * cosine + in[i] * sine;
  }
  return out;
}

// A key or value (D) as the cache holds it.
void StoreRow(const float* in, int32_t head_dim, DType dtype, const KvRow& row) {
  if (row.scale == nullptr) {
    for (int32_t i = 0; i < head_dim; ++i) Store(in[i], dtype, row.elements, i);
    return;
  }
  auto* codes = static_cast<uint8_t*>(row.elements);
  *row.scale = KvScale(in, head_dim);
  for (int32_t i = 0; i < head_dim; ++i) {
    codes[i] = std::isnan(*row.scale) ? 0 : FloatToE4M3(in[i] / *row.scale);
  }
}

}  // namespace

float KvScale(const float* elements, int32_t count) {
  float largest = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (!std::isfinite(elements[i])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, std::abs(elements[i]));
  }
  return largest == 0 ? 1.0f : std::max(largest / 448, std::numeric_limits<float>::denorm_min());
}

void RopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                    absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                    DType dtype, const Tensor& q) {
  const int32_t head_dim = shape.head_dim;
  for (const SequenceSpan& sequence : sequences) {
    for (int32_t t = 0; t < sequence.tokens; ++t) {
      const int32_t row = sequence.first_row + t;
      const int32_t position = sequence.position + t;
      const float* table = rope.Row<float>(position);
      const float* in = qkv.Row<float>(row);
      const float* keys = in + int64_t{shape.heads} * head_dim;
      const float* values = keys + int64_t{shape.kv_heads} * head_dim;
      for (int32_t h = 0; h < shape.heads; ++h) {
        const int64_t column = int64_t{h} * head_dim;
        const std::vector<float> query = Rotated(in + column, table, head_dim);
        for (int32_t i = 0; i < head_dim; ++i) {
          Store(query[i], q.dtype, q.RowBytes(row), column + i);
        }
      }
      for (int32_t c = 0; c < shape.kv_heads; ++c) {
        const int64_t column = int64_t{c} * head_dim;
        StoreRow(Rotated(keys + column, table, head_dim).data(), head_dim, dtype,
                 FindKvRow(cache, dtype, sequence, position, c, KvPart::kKeys));
        StoreRow(values + column, head_dim, dtype,
                 FindKvRow(cache, dtype, sequence, position, c, KvPart::kValues));
      }
    }
  }
}

}  // namespace marcoro::reference
