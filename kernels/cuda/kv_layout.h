// How a KV block lies in device memory. For each KV head, side by side: 16 keys, each of head_dim
// BF16 elements, then 16 values likewise.
#pragma once

#include <cstdint>

namespace marcoro::cuda {

inline constexpr int kBlockTokens = 16;

// Elements of the keys of one KV head in one block, and as many of the values.
constexpr int64_t KeyElements(int head_dim) { return int64_t{kBlockTokens} * head_dim; }
constexpr int64_t HeadElements(int head_dim) { return 2 * KeyElements(head_dim); }
constexpr int64_t BlockElements(int kv_heads, int head_dim) {
  return kv_heads * HeadElements(head_dim);
}

}  // namespace marcoro::cuda
