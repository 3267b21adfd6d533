#include <immintrin.h>

#include "kernels/bench/limit_loops.h"

namespace marcoro {
namespace {

void Read(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  __m512i sum[4] = {};
  for (size_t i = 0; i < bytes; i += 256) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(from + i + 64 * j));
    }
  }
  sum[0] = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
  asm volatile("" ::"v"(sum[0]));  // keeps the loop
}

double MultiplyAdd(int64_t iterations) {
  // More chains than latency times throughput of any processor so far, and few enough for the
  // registers.
  constexpr int kChains = 16;
  constexpr int kFlops = 64;  // 32 products and sums
  __m512 sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) {
    sum[i] = _mm512_setzero_ps();
    asm volatile("" : "+v"(sum[i]));  // or the compiler would see that all chains are the same
  }
  __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  asm volatile("" : "+v"(a));
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], a, a);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) asm volatile("" ::"v"(sum[i]));
  return static_cast<double>(iterations) * kChains * kFlops;
}

}  // namespace

LimitLoops Avx512LimitLoops() { return {Read, MultiplyAdd}; }

}  // namespace marcoro
