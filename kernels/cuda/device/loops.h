// How often the compiler may write a loop's body.
#pragma once

#include "kernels/cuda/device/platform.h"

// Before a loop whose body is long: once, so that the code stays in the instruction cache.
#ifdef MARCORO_SIMT
#define MARCORO_ROLLED_LOOP
#else
#define MARCORO_ROLLED_LOOP _Pragma("unroll 1")
#endif
