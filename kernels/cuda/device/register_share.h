// How many registers the threads of a warpgroup have: those that copy leave theirs to those that
// compute (setmaxnreg, sm_90a only; nothing elsewhere). All threads of a warpgroup call these, the
// warpgroups of a block each in its own branch of one if.
#pragma once

#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

// `kRegisters`: a multiple of 8, from 24 to 256. GiveRegisters leaves a thread with fewer than it
// had at its start; TakeRegisters waits until others have left enough.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int kRegisters>
MARCORO_DEVICE void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
MARCORO_DEVICE void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#else

template <int kRegisters>
MARCORO_DEVICE void GiveRegisters() {}
template <int kRegisters>
MARCORO_DEVICE void TakeRegisters() {}

#endif

}  // namespace marcoro::cuda
