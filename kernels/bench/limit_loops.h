// The loops behind LimitMeter, one set for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace marcoro {

struct LimitLoops {
  // Reads `bytes` bytes, a multiple of 256, at a multiple of 64.
  void (*read)(const void* data, size_t bytes);
  // Runs `iterations` rounds of independent multiply-adds and returns the number of operations, two
  // for each product.
  double (*multiply_add)(int64_t iterations);
};

LimitLoops Avx512LimitLoops();
LimitLoops Avx2LimitLoops();

}  // namespace marcoro
