#include "kernels/reference/element.h"
#include "kernels/reference/kv_layout.h"
#include "kernels/reference/ops.h"

namespace marcoro::reference {
namespace {

// out (D) = in (D) with elements i and i + D/2 turned by the angle whose cosine is table[i] and
// whose sine is table[i + D/2].
void Rotate(const float* in, const float* table, int32_t head_dim, DType dtype, void* out) {
  const int32_t half = head_dim / 2;
  for (int32_t i = 0; i < half; ++i) {
    const float cosine = table[i];
    const float sine = table[i + half];
    Store(in[i] * cosine - in[i + half] * sine, dtype, out, i);
    Store(in[i + half] * cosine + in[i] * sine, dtype, out, i + half);
  }
}

}  // namespace

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
        char* out = static_cast<char*>(q.RowBytes(row)) + column * SizeOf(q.dtype);
        Rotate(in + column, table, head_dim, q.dtype, out);
      }
      for (int32_t c = 0; c < shape.kv_heads; ++c) {
        const int64_t column = int64_t{c} * head_dim;
        Rotate(keys + column, table, head_dim, dtype,
               KvRow(cache, dtype, sequence, position, c, KvPart::kKeys));
        void* value = KvRow(cache, dtype, sequence, position, c, KvPart::kValues);
        for (int32_t i = 0; i < head_dim; ++i) Store(values[column + i], dtype, value, i);
      }
    }
  }
}

}  // namespace marcoro::reference
