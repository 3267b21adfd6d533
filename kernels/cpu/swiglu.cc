#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd.h"

namespace marcoro::cpu::MARCORO_ISA {
namespace {

MARCORO_INLINE Float SwiGlu(Float gate, Float up) {
  const Float silu = Div(gate, Add(Set(1), Exp(Sub(Set(0), gate))));
  return Mul(silu, up);
}

}  // namespace

void SwiGluRow(const float* gate, const float* up, int64_t count, BFloat16* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    StoreBf16(SwiGlu(Load(gate + i), Load(up + i)), out + i);
  }
  if (i < count) {
    const int64_t rest = count - i;
    const Float v = SwiGlu(LoadFirst(gate + i, rest, 0), LoadFirst(up + i, rest, 0));
    StoreFirstBf16(v, rest, out + i);
  }
}

}  // namespace marcoro::cpu::MARCORO_ISA
