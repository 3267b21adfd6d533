// Operations on whole numbers.
#pragma once

#include "kernels/cuda/device/platform.h"

#ifdef MARCORO_SIMT
#include <bit>
#endif

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

MARCORO_DEVICE int CountOnes(uint32_t bits) { return std::popcount(bits); }
// The upper 64 bits of the product.
MARCORO_DEVICE uint64_t MultiplyHigh(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

#else

MARCORO_DEVICE int CountOnes(uint32_t bits) { return __popc(bits); }
MARCORO_DEVICE uint64_t MultiplyHigh(uint64_t a, uint64_t b) { return __umul64hi(a, b); }

#endif

}  // namespace marcoro::cuda
