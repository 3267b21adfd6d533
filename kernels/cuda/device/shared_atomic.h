// Counters in shared memory that many threads add to. Whole numbers only: their sums do not depend
// on the order. A barrier separates these additions from plain accesses of the same counter.
#pragma once

#include "kernels/cuda/device/platform.h"
#include "kernels/cuda/device/shared_memory.h"

namespace marcoro::cuda {

// Returns what the counter was.
MARCORO_DEVICE uint32_t AtomicAddShared(const SharedArray<uint32_t>& counters, int i,
                                        uint32_t value, SourceLocation here = MARCORO_HERE) {
#ifdef MARCORO_SIMT
  // Noted as a read: additions need no order among each other, but one to plain writes.
  const uint32_t before = counters.Load(i, here);
  *counters.Address(i) = before + value;
  return before;
#else
  return atomicAdd(counters.Address(i), value);
#endif
}

}  // namespace marcoro::cuda
