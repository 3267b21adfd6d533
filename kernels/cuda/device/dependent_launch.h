// A kernel that is launched before the one ahead of it in the stream has ended (programmatic
// dependent launch, sm_90 and newer). Older GPUs and the emulator run kernels one after the other.
#pragma once

#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// The kernel behind this one may start now. Says nothing of what this one wrote. The kernels of a
// step begin with it: the one behind takes its place on the GPU, and asks for its weights, while
// this one works.
MARCORO_DEVICE void LaunchDependents() {}
// Returns when the kernel ahead has ended and what it wrote is seen; may be called again. Before it
// only what no kernel of the step writes (weights, the step's arrays but for ids, keys and values
// of earlier steps) may be read, and nothing that one reads may be written. A kernel that was
// started early has all its threads wait: so its end means the end of all ahead.
MARCORO_DEVICE void WaitForKernelAhead() {}

#else

MARCORO_DEVICE void LaunchDependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
MARCORO_DEVICE void WaitForKernelAhead() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif

}  // namespace marcoro::cuda
