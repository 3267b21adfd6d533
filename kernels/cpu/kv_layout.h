// Inside a KV block of the CPU backends: for each KV head
//   keys   (head_dim / 2, 16 positions, 2)            elements 2 i and 2 i + 1 of a key side by
//   side values (8, padded head_dim, 2)                    elements i of positions 2 j and 2 j + 1
//   side by side
// in BF16, so that the lanes of one vector are neighbouring positions (keys) or neighbouring
// elements (values), and each lane holds the two factors of a pairwise dot product.
//
// Functions are static: sources of all instruction sets use them, and none may lend its code to
// another.
#pragma once

#include <cstdint>

namespace marcoro::cpu {

inline constexpr int32_t kBlockTokens = 16;

static inline constexpr int32_t PaddedHeadDim(int32_t head_dim) {
  return (head_dim + 15) / 16 * 16;
}

// Elements of the keys of one head in a block; its values follow.
static inline constexpr int64_t KeyElements(int32_t head_dim) {
  return int64_t{kBlockTokens} * head_dim;
}

// Elements of one head in a block, a multiple of 32 (64 bytes).
static inline constexpr int64_t HeadElements(int32_t head_dim) {
  return KeyElements(head_dim) + int64_t{kBlockTokens} * PaddedHeadDim(head_dim);
}

static inline constexpr int64_t BlockElements(int32_t kv_heads, int32_t head_dim) {
  return kv_heads * HeadElements(head_dim);
}

}  // namespace marcoro::cpu
