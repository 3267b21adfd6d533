// Loads and stores of global memory in which a hint or an order matters. Everything else is a plain
// pointer.
#pragma once

#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// 16 bytes that are read once: they need no place in the first-level cache. Aligned to 16.
MARCORO_DEVICE Words4 LoadStreaming(const void* global) {
  Words4 words;
  std::memcpy(&words, global, sizeof(words));
  return words;
}
// Adds to a counter; returns what it was. Seen by all blocks of the device; says nothing of other
// memory.
MARCORO_DEVICE uint32_t AtomicAdd(uint32_t* global, uint32_t value) {
  const uint32_t before = *global;
  *global += value;
  return before;
}
// What this thread wrote before is seen by any thread that sees what it writes after.
MARCORO_DEVICE void FenceDevice() {}

#else

MARCORO_DEVICE Words4 LoadStreaming(const void* global) {
  Words4 words;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.word[0]), "=r"(words.word[1]), "=r"(words.word[2]), "=r"(words.word[3])
               : "l"(global));
  return words;
}
MARCORO_DEVICE uint32_t AtomicAdd(uint32_t* global, uint32_t value) {
  return atomicAdd(global, value);
}
MARCORO_DEVICE void FenceDevice() { __threadfence(); }

#endif

}  // namespace marcoro::cuda
