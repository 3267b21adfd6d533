#include "kernels/cpu/e4m3.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

// Elements [begin, begin + count) of the two halves of a rotated head.
struct RotatedFloats {
  Float first;
  Float second;
};

MARCORO_INLINE RotatedFloats RotateFloats(const float* head, const float* table, int32_t half,
                                          int32_t begin, int32_t count) {
  const Float a = LoadFirst(head + begin, count, 0);
  const Float b = LoadFirst(head + half + begin, count, 0);
  const Float cosine = LoadFirst(table + begin, count, 0);
  const Float sine = LoadFirst(table + half + begin, count, 0);
  return {Sub(Mul(a, cosine), Mul(b, sine)), Add(Mul(b, cosine), Mul(a, sine))};
}

// The same in BF16.
struct RotatedPart {
  BFloat16 first[kLanes];
  BFloat16 second[kLanes];
};

RotatedPart Rotate(const float* head, const float* table, int32_t half, int32_t begin,
                   int32_t count) {
  const RotatedFloats floats = RotateFloats(head, table, half, begin, count);
  RotatedPart part;
  StoreBf16(floats.first, part.first);
  StoreBf16(floats.second, part.second);
  return part;
}

MARCORO_INLINE int32_t Smaller(int32_t a, int32_t b) { return a < b ? a : b; }

void RotateQuery(const float* head, const float* table, int32_t half, BFloat16* out) {
  for (int32_t begin = 0; begin < half; begin += kLanes) {
    const int32_t count = Smaller(kLanes, half - begin);
    const RotatedPart part = Rotate(head, table, half, begin, count);
    const size_t bytes = static_cast<size_t>(count) * sizeof(BFloat16);
    std::memcpy(out + begin, part.first, bytes);
    std::memcpy(out + half + begin, part.second, bytes);
  }
}

void RotateAndStoreKey(const float* head, const float* table, int32_t half, int32_t slot,
                       BFloat16* keys) {
  const auto element = [&](int32_t i) -> BFloat16& {
    return keys[(i / 2 * kBlockTokens + slot) * 2 + i % 2];
  };
  for (int32_t begin = 0; begin < half; begin += kLanes) {
    const int32_t count = Smaller(kLanes, half - begin);
    const RotatedPart part = Rotate(head, table, half, begin, count);
    for (int32_t i = 0; i < count; ++i) {
      element(begin + i) = part.first[i];
      element(half + begin + i) = part.second[i];
    }
  }
}

void StoreValue(const float* head, int32_t head_dim, int32_t slot, BFloat16* values) {
  BFloat16* row = values + slot / 2 * PaddedHeadDim(head_dim) * 2 + slot % 2;
  for (int32_t begin = 0; begin < head_dim; begin += kLanes) {
    const int32_t count = Smaller(kLanes, head_dim - begin);
    BFloat16 rounded[kLanes];
    StoreBf16(LoadFirst(head + begin, count, 0), rounded);
    for (int32_t i = 0; i < count; ++i) row[(begin + i) * 2] = rounded[i];
  }
}

// `count` elements of a key or value in FP8, as kernels/backend.h defines it: code i goes to
// codes[offset(i)].
template <typename Offset>
void StoreFp8(const float* elements, int32_t count, const Offset& offset, char* codes,
              char* scale_at) {
  const float scale = ScaleOf(elements, count);
  std::memcpy(scale_at, &scale, sizeof(scale));
  for (int32_t i = 0; i < count; ++i) {
    codes[offset(i)] = static_cast<char>(scale == scale ? E4M3Of(elements[i] / scale) : 0);
  }
}

void StoreKeyFp8(const float* head, const float* table, int32_t head_dim, int32_t slot,
                 char* block_head) {
  const int32_t half = head_dim / 2;
  alignas(64) float rotated[kAttentionTileElements];
  for (int32_t begin = 0; begin < half; begin += kLanes) {
    const int32_t count = Smaller(kLanes, half - begin);
    const RotatedFloats part = RotateFloats(head, table, half, begin, count);
    StoreFirst(part.first, count, rotated + begin);
    StoreFirst(part.second, count, rotated + half + begin);
  }
  StoreFp8(
      rotated, head_dim, [&](int32_t i) { return KeyCode(slot, i); }, block_head,
      block_head + KeyScales(head_dim) + int64_t{slot} * sizeof(float));
}

void StoreValueFp8(const float* head, int32_t head_dim, int32_t slot, char* block_head) {
  StoreFp8(
      head, head_dim, [&](int32_t i) { return ValueCode(head_dim, slot, i); }, block_head,
      block_head + ValueScales(head_dim) + int64_t{slot} * sizeof(float));
}

}  // namespace

void RopeAndStoreRow(const RopeRow& row) {
  const int32_t head_dim = row.head_dim;
  const int64_t head_bytes = HeadBytes(head_dim, row.format);
  const float* head = row.qkv;
  for (int32_t h = 0; h < row.heads; ++h, head += head_dim) {
    RotateQuery(head, row.table, head_dim / 2, row.q + int64_t{h} * head_dim);
  }
  for (int32_t c = 0; c < row.kv_heads; ++c, head += head_dim) {
    char* const block_head = row.block + c * head_bytes;
    const float* const value = head + int64_t{row.kv_heads} * head_dim;
    if (row.format == KvFormat::kFp8) {
      StoreKeyFp8(head, row.table, head_dim, row.slot, block_head);
      StoreValueFp8(value, head_dim, row.slot, block_head);
      continue;
    }
    BFloat16* const keys = reinterpret_cast<BFloat16*>(block_head);
    RotateAndStoreKey(head, row.table, head_dim / 2, row.slot, keys);
    StoreValue(value, head_dim, row.slot, keys + KeyElements(head_dim));
  }
}

}  // namespace marcoro::cpu::MARCORO_ISA
