// Which machine a kernel was compiled for.
#pragma once

#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

// 800 for sm_80, 900 for sm_90a, and so on; 0 in the emulator.
#ifdef MARCORO_SIMT
MARCORO_DEVICE int CompiledArchitecture() { return 0; }
#else
MARCORO_DEVICE int CompiledArchitecture() {
#ifdef __CUDA_ARCH__
  return __CUDA_ARCH__;
#else
  return 0;  // the compiler's pass over host code
#endif
}
#endif

// Whether it can multiply matrices of warpgroups (device/warpgroup_matrix.h). The emulator can.
MARCORO_DEVICE bool CompiledForWarpgroups() {
#if defined(MARCORO_SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  return true;
#else
  return false;
#endif
}

}  // namespace marcoro::cuda
