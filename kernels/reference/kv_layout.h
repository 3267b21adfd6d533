// Inside a KV block of the reference backend: (keys or values, kv_heads, 16 positions, head_dim),
// row-major.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/op_checks.h"

namespace marcoro::reference {

inline size_t KvBlockBytes(int32_t kv_heads, int32_t head_dim, DType dtype) {
  return size_t{2} * static_cast<size_t>(kv_heads) * kKvBlockTokens *
         static_cast<size_t>(head_dim) * SizeOf(dtype);
}

enum class KvPart { kKeys = 0, kValues = 1 };

// The head_dim elements of one position's key or value.
inline void* KvRow(const KvCacheLayer& cache, DType dtype, const SequenceSpan& sequence,
                   int32_t position, int32_t kv_head, KvPart part) {
  const int32_t entry = position / kKvBlockTokens;
  MARCORO_CHECK(entry < sequence.block_count);
  const int32_t block = sequence.blocks[entry];
  CheckBlock(cache, block);
  const size_t row = (static_cast<size_t>(part) * static_cast<size_t>(cache.kv_heads) +
                      static_cast<size_t>(kv_head)) *
                         kKvBlockTokens +
                     static_cast<size_t>(position % kKvBlockTokens);
  return static_cast<char*>(cache.data) +
         static_cast<size_t>(block) * KvBlockBytes(cache.kv_heads, cache.head_dim, dtype) +
         row * static_cast<size_t>(cache.head_dim) * SizeOf(dtype);
}

}  // namespace marcoro::reference
