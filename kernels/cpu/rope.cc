#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

// Elements [begin, begin + count) of the two halves of a rotated head, in BF16.
struct RotatedPart {
  BFloat16 first[kLanes];
  BFloat16 second[kLanes];
};

RotatedPart Rotate(const float* head, const float* table, int32_t half, int32_t begin,
                   int32_t count) {
  const Float a = LoadFirst(head + begin, count, 0);
  const Float b = LoadFirst(head + half + begin, count, 0);
  const Float cosine = LoadFirst(table + begin, count, 0);
  const Float sine = LoadFirst(table + half + begin, count, 0);
  RotatedPart part;
  StoreBf16(Sub(Mul(a, cosine), Mul(b, sine)), part.first);
  StoreBf16(Add(Mul(b, cosine), Mul(a, sine)), part.second);
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

}  // namespace

void RopeAndStoreRow(const RopeRow& row) {
  const int32_t head_dim = row.head_dim;
  const float* head = row.qkv;
  for (int32_t h = 0; h < row.heads; ++h, head += head_dim) {
    RotateQuery(head, row.table, head_dim / 2, row.q + int64_t{h} * head_dim);
  }
  for (int32_t c = 0; c < row.kv_heads; ++c, head += head_dim) {
    RotateAndStoreKey(head, row.table, head_dim / 2, row.slot,
                      row.block + c * HeadElements(head_dim));
  }
  for (int32_t c = 0; c < row.kv_heads; ++c, head += head_dim) {
    StoreValue(head, head_dim, row.slot,
               row.block + c * HeadElements(head_dim) + KeyElements(head_dim));
  }
}

}  // namespace marcoro::cpu::MARCORO_ISA
