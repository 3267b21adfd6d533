// Arithmetic in double. Sums and products round once, to nearest even, on every machine;
// exponential and logarithm are each machine's own, within 1 unit in the last place.
#pragma once

#include "kernels/cuda/device/platform.h"

#ifdef MARCORO_SIMT
#include <cmath>
#endif

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

MARCORO_DEVICE double AddDouble(double a, double b) { return a + b; }
MARCORO_DEVICE double MultiplyDouble(double a, double b) { return a * b; }
MARCORO_DEVICE double DivideDouble(double a, double b) { return a / b; }
MARCORO_DEVICE double CeilDouble(double a) { return std::ceil(a); }
MARCORO_DEVICE double ExpDouble(double a) { return std::exp(a); }
MARCORO_DEVICE double LogDouble(double a) { return std::log(a); }

#else

MARCORO_DEVICE double AddDouble(double a, double b) { return __dadd_rn(a, b); }
MARCORO_DEVICE double MultiplyDouble(double a, double b) { return __dmul_rn(a, b); }
MARCORO_DEVICE double DivideDouble(double a, double b) { return __ddiv_rn(a, b); }
MARCORO_DEVICE double CeilDouble(double a) { return ceil(a); }
MARCORO_DEVICE double ExpDouble(double a) { return exp(a); }
MARCORO_DEVICE double LogDouble(double a) { return log(a); }

#endif

}  // namespace marcoro::cuda
