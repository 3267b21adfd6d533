// Inside a KV block of the CPU backends.
//
// In BF16, for each KV head
//   keys   (head_dim / 2, 16 positions, 2)  elements 2 i and 2 i + 1 of a key side by side
//   values (8, padded head_dim, 2)          elements i of positions 2 j and 2 j + 1 side by side
// so that the lanes of one vector are neighbouring positions (keys) or neighbouring elements
// (values), and each lane holds the two factors of a pairwise dot product.
//
// In FP8, for each KV head
//   keys   (head_dim / 4 rounded up, 64)    four elements of all positions
//   key scales (16) F32
//   values (4, padded head_dim / 16, 64)    four positions of 16 elements
//   value scales (16) F32
// Each 64 codes are two vectors of 16 lanes of pairs, as in BF16, in the order in which they come
// out of one decoding (CodeInUnit).
//
// Functions are static: sources of all instruction sets use them, and none may lend its code to
// another.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace marcoro::cpu {

inline constexpr int32_t kBlockTokens = 16;

static inline constexpr int32_t PaddedHeadDim(int32_t head_dim) {
  return (head_dim + 15) / 16 * 16;
}

// Elements of the keys of one head in a block of BF16; its values follow.
static inline constexpr int64_t KeyElements(int32_t head_dim) {
  return int64_t{kBlockTokens} * head_dim;
}

// Codes that are decoded together.
inline constexpr int32_t kUnitCodes = 64;

// Where in its unit a code lies: element `parity` of lane `lane` of vector `vector`, of two.
static inline constexpr int32_t CodeInUnit(int32_t lane, int32_t vector, int32_t parity) {
  return lane / 4 * 16 + vector * 8 + lane % 4 * 2 + parity;
}

// Offsets from the beginning of a head in a block of FP8.
static inline constexpr int64_t KeyCode(int32_t slot, int32_t element) {
  return int64_t{element / 4} * kUnitCodes + CodeInUnit(slot, element % 4 / 2, element % 2);
}
static inline constexpr int64_t KeyScales(int32_t head_dim) {
  return int64_t{(head_dim + 3) / 4} * kUnitCodes;
}
static inline constexpr int64_t ValueCodes(int32_t head_dim) {
  return KeyScales(head_dim) + int64_t{kBlockTokens} * 4;
}
static inline constexpr int64_t ValueCode(int32_t head_dim, int32_t slot, int32_t element) {
  const int32_t unit = slot / 4 * (PaddedHeadDim(head_dim) / 16) + element / 16;
  return ValueCodes(head_dim) + int64_t{unit} * kUnitCodes +
         CodeInUnit(element % 16, slot % 4 / 2, slot % 2);
}
static inline constexpr int64_t ValueScales(int32_t head_dim) {
  return ValueCodes(head_dim) + int64_t{kBlockTokens} * PaddedHeadDim(head_dim);
}

// Bytes of one head in a block, a multiple of 64.
static inline constexpr int64_t HeadBytes(int32_t head_dim, KvFormat format) {
  if (format == KvFormat::kFp8) return ValueScales(head_dim) + int64_t{kBlockTokens} * 4;
  return (KeyElements(head_dim) + int64_t{kBlockTokens} * PaddedHeadDim(head_dim)) * 2;
}

static inline constexpr int64_t BlockBytes(int32_t kv_heads, int32_t head_dim, KvFormat format) {
  return kv_heads * HeadBytes(head_dim, format);
}

}  // namespace marcoro::cpu
