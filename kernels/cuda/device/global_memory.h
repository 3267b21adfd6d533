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
// Counts this thread at a counter; returns how many came before. What they wrote before they came,
// and what others wrote before a barrier that they had passed, is seen by this thread, and by
// others behind a barrier that it passes.
MARCORO_DEVICE uint32_t Arrive(uint32_t* counter) {
  const uint32_t before = (*counter)++;
  simt::Pause();
  return before;
}

#else

MARCORO_DEVICE Words4 LoadStreaming(const void* global) {
  Words4 words;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.word[0]), "=r"(words.word[1]), "=r"(words.word[2]), "=r"(words.word[3])
               : "l"(global));
  return words;
}
MARCORO_DEVICE uint32_t Arrive(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return before;
}

#endif

}  // namespace marcoro::cuda
