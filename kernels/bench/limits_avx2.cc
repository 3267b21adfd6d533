#include <immintrin.h>

#include "kernels/bench/limit_loops.h"

namespace marcoro {
namespace {

void Read(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  __m256i sum[8] = {};
  for (size_t i = 0; i < bytes; i += 256) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const auto* vector = reinterpret_cast<const __m256i*>(from + i + 32 * j);
      sum[j] = _mm256_xor_si256(sum[j], _mm256_load_si256(vector));
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) asm volatile("" ::"x"(sum[j]));  // keeps the loop
}

double MultiplyAdd(int64_t iterations) {
  constexpr int kChains = 12;
  constexpr int kFlops = 16;  // 8 products and sums
  __m256 sum[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    sum[i] = _mm256_setzero_ps();
    asm volatile("" : "+x"(sum[i]));  // or the compiler would see that all chains are the same
  }
  __m256 a = _mm256_set1_ps(1.0f);
  asm volatile("" : "+x"(a));
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = _mm256_fmadd_ps(a, a, sum[i]);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) asm volatile("" ::"x"(sum[i]));
  return static_cast<double>(iterations) * kChains * kFlops;
}

}  // namespace

LimitLoops Avx2LimitLoops() { return {Read, MultiplyAdd}; }

}  // namespace marcoro
