// Matrix fragments and products of a warp, as the PTX ISA describes them ("Warp Level Matrix
// Instructions"). With g = lane / 4 and i = lane % 4, a lane holds
//   A (16 x 16, BF16):  a[0] = row g,     columns 2i, 2i+1     a[2] = row g,     columns 2i+8, 2i+9
//                       a[1] = row g + 8, columns 2i, 2i+1     a[3] = row g + 8, columns 2i+8, 2i+9
//   B (16 x 8, BF16):   b[0] = rows 2i, 2i+1 of column g       b[1] = rows 2i+8, 2i+9 of column g
//   C (16 x 8, F32):    c[0], c[1] = row g, columns 2i, 2i+1   c[2], c[3] = row g + 8, likewise
// two BF16 to a word, the first in the lower half.
#pragma once

#include "kernels/cuda/device/shared_memory.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// c += a · b, in F32; the products of one call are added in an order of the machine's own.
MARCORO_DEVICE void MultiplyMatrix(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                   SourceLocation here = MARCORO_HERE) {
  simt::MultiplyMatrix(c, a, b, here);
}
// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l passes the address of row l % 8
// of matrix l / 8 (16 bytes, aligned) and gets of each matrix m in r[m] the elements 2i, 2i+1 of
// row g.
MARCORO_DEVICE void LoadMatrices(uint32_t (&r)[4], const void* shared_row,
                                 SourceLocation here = MARCORO_HERE) {
  simt::LoadMatrices(r, shared_row, /*transposed=*/false, here);
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
