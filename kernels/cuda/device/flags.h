// Flags in memory that several GPUs see, by which kernels that run at the same time tell each other
// that data is ready.
#pragma once

#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// All that this thread wrote before, and all that others wrote before a barrier it passed, is seen
// by whoever sees the flag with LoadFlag.
MARCORO_DEVICE void StoreFlag(uint32_t* flag, uint32_t value) {
  *flag = value;
  simt::Pause();
}
MARCORO_DEVICE uint32_t LoadFlag(const uint32_t* flag) { return *flag; }
// Once in every turn of a loop that waits for a flag.
MARCORO_DEVICE void SpinPause(SourceLocation here = MARCORO_HERE) { simt::SpinPause(here); }

#else

MARCORO_DEVICE void StoreFlag(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(flag)),
               "r"(value)
               : "memory");
}
MARCORO_DEVICE uint32_t LoadFlag(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(flag))
               : "memory");
  return value;
}
MARCORO_DEVICE void SpinPause(SourceLocation = {}) { __nanosleep(32); }

#endif

}  // namespace marcoro::cuda
