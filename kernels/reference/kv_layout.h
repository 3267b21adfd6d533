// Inside a KV block of the reference backend: (keys or values, kv_heads, 16 positions, head_dim),
// row-major; in FP8 behind that the scales (keys or values, kv_heads, 16 positions).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/op_checks.h"

namespace marcoro::reference {

// Keys and values of all heads in a block.
inline size_t KvBlockRows(int32_t kv_heads) {
  return size_t{2} * static_cast<size_t>(kv_heads) * kKvBlockTokens;
}

// `dtype` is that of the cached elements, kF8E4M3 for codes.
inline size_t KvBlockBytes(int32_t kv_heads, int32_t head_dim, DType dtype) {
  const size_t scale_bytes = dtype == DType::kF8E4M3 ? sizeof(float) : 0;
  return KvBlockRows(kv_heads) * (static_cast<size_t>(head_dim) * SizeOf(dtype) + scale_bytes);
}

enum class KvPart { kKeys = 0, kValues = 1 };

// One position's key or value.
struct KvRow {
  void* elements;  // head_dim
  float* scale;    // of codes, otherwise null
};

inline KvRow FindKvRow(const KvCacheLayer& cache, DType dtype, const SequenceSpan& sequence,
                       int32_t position, int32_t kv_head, KvPart part) {
  const int32_t entry = position / kKvBlockTokens;
  MARCORO_CHECK(entry < sequence.block_count);
  const int32_t block = sequence.blocks[entry];
  CheckBlock(cache, block);
  const size_t row = (static_cast<size_t>(part) * static_cast<size_t>(cache.kv_heads) +
                      static_cast<size_t>(kv_head)) *
                         kKvBlockTokens +
                     static_cast<size_t>(position % kKvBlockTokens);
  const size_t row_bytes = static_cast<size_t>(cache.head_dim) * SizeOf(dtype);
  char* const data =
      static_cast<char*>(cache.data) +
      static_cast<size_t>(block) * KvBlockBytes(cache.kv_heads, cache.head_dim, dtype);
  float* const scales = reinterpret_cast<float*>(data + KvBlockRows(cache.kv_heads) * row_bytes);
  return {data + row * row_bytes, dtype == DType::kF8E4M3 ? scales + row : nullptr};
}

}  // namespace marcoro::reference
