// Before a kernel's parameter that is larger than a few words and indexed: it stays where the
// launch put it, in constant memory, instead of being copied to each thread's stack.
#pragma once

#include "kernels/cuda/device/platform.h"

#ifdef MARCORO_SIMT
#define MARCORO_CONSTANT_PARAMETER const
#else
#define MARCORO_CONSTANT_PARAMETER const __grid_constant__
#endif
