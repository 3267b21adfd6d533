// Copies from global to shared memory that run beside the thread that asked for them, in groups, as
// sm_80 has them. What a thread copied may be read by it after WaitCopies, and by others after a
// barrier behind that.
#pragma once

#include "kernels/cuda/device/shared_memory.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// 16 bytes, both addresses aligned to 16; zeros instead where `valid` is false (then nothing is
// read).
MARCORO_DEVICE void CopyAsync16(void* shared, const void* global, bool valid = true,
                                SourceLocation here = MARCORO_HERE) {
  simt::CopyAsync(shared, global, 16, valid, here);
}
// What was asked for since the last call becomes a group.
MARCORO_DEVICE void CommitCopies() { simt::CommitCopies(); }
// Returns when at most the newest kGroups groups of this thread are still under way.
template <int kGroups>
MARCORO_DEVICE void WaitCopies() {
  simt::WaitCopies(kGroups);
}

#else

MARCORO_DEVICE void CopyAsync16(void* shared, const void* global, bool valid = true,
                                SourceLocation = {}) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
MARCORO_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
MARCORO_DEVICE void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

#endif

}  // namespace marcoro::cuda
