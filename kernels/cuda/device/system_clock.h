// Time as all GPUs of a machine see it.
#pragma once

#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// The emulator has no time: every look at the clock is a nanosecond.
MARCORO_DEVICE uint64_t SystemNanoseconds() {
  static uint64_t looks = 0;
  return ++looks;
}

#else

// Some GPUs move it on by a microsecond at a time.
MARCORO_DEVICE uint64_t SystemNanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

#endif

}  // namespace marcoro::cuda
