// Matrix fragments and products of a warp, as the PTX ISA describes them ("Warp Level Matrix
// Instructions"). With g = lane / 4 and i = lane % 4, a lane holds
//   A (16 x 16, BF16):  a[0] = row g,     columns 2i, 2i+1     a[2] = row g,     columns 2i+8, 2i+9
//                       a[1] = row g + 8, columns 2i, 2i+1     a[3] = row g + 8, columns 2i+8, 2i+9
//   B (16 x 8, BF16):   b[0] = rows 2i, 2i+1 of column g       b[1] = rows 2i+8, 2i+9 of column g
//   C (16 x 8, F32):    c[0], c[1] = row g, columns 2i, 2i+1   c[2], c[3] = row g + 8, likewise
// two BF16 to a word, the first in the lower half. Of E4M3 codes, four to a word, the first in the
// lowest byte, it holds
//   A (16 x 32):  a[0] = row g,     columns 4i … 4i+3     a[2] = row g,     columns 4i+16 … 4i+19
//                 a[1] = row g + 8, columns 4i … 4i+3     a[3] = row g + 8, columns 4i+16 … 4i+19
//   B (32 x 8):   b[0] = rows 4i … 4i+3 of column g       b[1] = rows 4i+16 … 4i+19 of column g
#pragma once

#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// c += a · b, in F32; the products of one call are added in an order of the machine's own.
MARCORO_DEVICE void MultiplyMatrix(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                   SourceLocation here = MARCORO_HERE) {
  simt::MultiplyMatrix(c, a, b, here);
}
// The same of E4M3 codes. Machines that multiply them as they are (sm_89) sum with fewer bits than
// F32 has: c must not hold more than a few products. Others convert: sm_80 to BF16, sm_90 and
// sm_100 (there it is the compiler) to F16; warpgroups of sm_90a do not. A NaN code may count as a
// number.
MARCORO_DEVICE void MultiplyCodeMatrix(float (&c)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2], SourceLocation here = MARCORO_HERE) {
  simt::MultiplyCodeMatrix(c, a, b, here);
}
// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l passes the address of row l % 8
// of matrix l / 8 (16 bytes, aligned) and gets of each matrix m in r[m] the elements 2i, 2i+1 of
// row g.
MARCORO_DEVICE void LoadMatrices(uint32_t (&r)[4], const void* shared_row,
                                 SourceLocation here = MARCORO_HERE) {
  simt::LoadMatrices(r, shared_row, /*transposed=*/false, here);
}
// The same of two matrices, whose rows' addresses lanes 0 to 15 pass.
MARCORO_DEVICE void LoadMatrices(uint32_t (&r)[2], const void* shared_row,
                                 SourceLocation here = MARCORO_HERE) {
  uint32_t four[4];
  simt::LoadMatrices(four, shared_row, /*transposed=*/false, here);
  r[0] = four[0];
  r[1] = four[1];
}
// The same of the transposed matrices: elements g of rows 2i and 2i+1.
MARCORO_DEVICE void LoadMatricesTransposed(uint32_t (&r)[4], const void* shared_row,
                                           SourceLocation here = MARCORO_HERE) {
  simt::LoadMatrices(r, shared_row, /*transposed=*/true, here);
}

#else

MARCORO_DEVICE void MultiplyMatrix(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                   SourceLocation = {}) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The two pairs of BF16 that four E4M3 codes are: a code's exponent and mantissa, shifted to where
// BF16 has them, mean the code times 2^-120.
MARCORO_DEVICE void CodesToBf16(uint32_t codes, uint32_t& first, uint32_t& second) {
  const auto convert = [](uint32_t high_bytes) {
    constexpr uint32_t kTwoTo120 = 0x7b807b80u;
    return MultiplyBf16Pair((high_bytes & 0x80008000u) | (high_bytes >> 4 & 0x07f007f0u),
                            kTwoTo120);
  };
  first = convert(__byte_perm(codes, 0, 0x1404));
  second = convert(__byte_perm(codes, 0, 0x3424));
}
MARCORO_DEVICE void MultiplyCodeMatrix(float (&c)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2], SourceLocation = {}) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  // Older machines have no such product: two of 16 columns, in another order of columns for both
  // operands.
  MARCORO_UNROLL_LOOP
  for (int k = 0; k < 2; ++k) {
    uint32_t wide_a[4];
    uint32_t wide_b[2];
    CodesToBf16(a[2 * k], wide_a[0], wide_a[2]);
    CodesToBf16(a[2 * k + 1], wide_a[1], wide_a[3]);
    CodesToBf16(b[k], wide_b[0], wide_b[1]);
    MultiplyMatrix(c, wide_a, wide_b);
  }
#endif
}
MARCORO_DEVICE void LoadMatrices(uint32_t (&r)[2], const void* shared_row, SourceLocation = {}) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(SharedAddress(shared_row))
               : "memory");
}
MARCORO_DEVICE void LoadMatrices(uint32_t (&r)[4], const void* shared_row, SourceLocation = {}) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}
MARCORO_DEVICE void LoadMatricesTransposed(uint32_t (&r)[4], const void* shared_row,
                                           SourceLocation = {}) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

#endif

}  // namespace marcoro::cuda
