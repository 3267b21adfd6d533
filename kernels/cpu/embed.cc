#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {

void EmbedRow(const BFloat16* row, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(LoadBf16(row + i), out + i);
  if (i < count) StoreFirst(LoadFirstBf16(row + i, count - i), count - i, out + i);
}

}  // namespace marcoro::cpu::MARCORO_ISA
