// How a KV block lies in device memory. For each KV head, side by side: 16 keys, each of head_dim
// BF16 elements or FP8 codes, then 16 values likewise, and in FP8 the 16 keys' scales, then the 16
// values', in F32.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace marcoro::cuda {

inline constexpr int kBlockTokens = 16;

// Elements of the keys of one KV head in one block, and as many of the values.
constexpr int64_t KeyElements(int head_dim) { return int64_t{kBlockTokens} * head_dim; }

// Those of BF16.
constexpr int64_t HeadElements(int head_dim) { return 2 * KeyElements(head_dim); }
constexpr int64_t BlockElements(int kv_heads, int head_dim) {
  return kv_heads * HeadElements(head_dim);
}

// Offsets in bytes of the scales of one KV head in FP8 from its first key.
constexpr int64_t KeyScales(int head_dim) { return 2 * KeyElements(head_dim); }
constexpr int64_t ValueScales(int head_dim) { return KeyScales(head_dim) + kBlockTokens * 4; }

constexpr int64_t HeadBytes(int head_dim, KvFormat format) {
  return format == KvFormat::kFp8 ? ValueScales(head_dim) + kBlockTokens * 4
                                  : HeadElements(head_dim) * 2;
}
constexpr int64_t BlockBytes(int kv_heads, int head_dim, KvFormat format) {
  return kv_heads * HeadBytes(head_dim, format);
}

}  // namespace marcoro::cuda
