// Matrix products of a warpgroup: four warps of which the first has an index that is a multiple of
// four (sm_90a only). D (64 x N, F32) += A (64 x 16, BF16) · B (16 x N, BF16), or of E4M3 codes A
// (64 x 32) · B (32 x N): A and D are in registers, B in shared memory. All 128 threads call every
// function here, with equal arguments but for the registers.
//
// Warp w of the four has rows 16w to 16w + 15. With g = lane / 4 and i = lane % 4, a lane holds of
// its warp's rows
//   A: a[0] = row g,     columns 2i, 2i+1     a[2] = row g,     columns 2i+8, 2i+9
//      a[1] = row g + 8, columns 2i, 2i+1     a[3] = row g + 8, columns 2i+8, 2i+9
//   D: d[4j], d[4j+1] = row g, columns 8j+2i, 8j+2i+1     d[4j+2], d[4j+3] = row g + 8, likewise
// two BF16 to a word, the first in the lower half: MultiplyMatrix's fragments. Of codes A's are
// those of MultiplyCodeMatrix.
//
// B lies K-major: for each of the N columns its elements along K side by side, 64 of them (128
// codes) in a row of 128 bytes, eight such rows in 1024 bytes (aligned to 1024), the next eight
// columns `stride_bytes` further. Within the 1024 bytes, the 16 bytes with number c of row r are at
// place c ^ r of the row ("128-byte swizzle"): see SwizzledOffset. A step of 16 (32 codes) along K
// within a row is 32 bytes on in the address that MatrixDescriptor is given.
//
// Order of calls: FenceWarpgroupMatrix; one or more products; CommitWarpgroupMatrix;
// WaitWarpgroupMatrix. Between a product and the wait for its group nobody touches its D, and
// nobody writes its B. B was written by bulk copies, or by stores and FenceAsyncProxy before a
// barrier.
#pragma once

#include "kernels/cuda/device/bulk_copy.h"

#ifndef MARCORO_SIMT
#include "kernels/cuda/device/warpgroup_codes_ptx.h"
#include "kernels/cuda/device/warpgroup_matrix_ptx.h"
#endif

namespace marcoro::cuda {

inline constexpr int kSwizzledRowBytes = 128;

// Where byte `column_byte` of row `row` lies in a matrix of rows of 128 bytes, swizzled, that
// begins at a multiple of 1024.
MARCORO_DEVICE int SwizzledOffset(int row, int column_byte) {
  return row * kSwizzledRowBytes + (column_byte ^ (row % 8 * 16));
}

// `columns` is where the elements begin; `stride_bytes`, a multiple of 16, leads from eight columns
// to the next eight.
MARCORO_DEVICE uint64_t MatrixDescriptor(const void* columns, int stride_bytes = 1024) {
#ifdef MARCORO_SIMT
  const auto address = static_cast<uint64_t>(static_cast<const char*>(columns) - SharedMemory());
#else
  const uint64_t address = SharedAddress(columns);
#endif
  constexpr uint64_t kLeadingField = 1;  // has no meaning with a swizzle
  constexpr uint64_t kSwizzle128 = 1;
  return (address & 0x3ffff) >> 4 | kLeadingField << 16 |
         static_cast<uint64_t>(stride_bytes & 0x3ffff) >> 4 << 32 | kSwizzle128 << 62;
}

#ifdef MARCORO_SIMT

// Orders what the threads did to registers before the products that follow.
template <int kCount>
MARCORO_DEVICE void FenceWarpgroupMatrix(float (&d)[kCount], SourceLocation here = MARCORO_HERE) {
  simt::FenceWarpgroupMatrix(d, here);
}
// Starts d = a · b, plus the former d if `accumulate`. N is twice d's length: 8, 16, 32, 64, 128 or
// 256.
template <int kCount>
MARCORO_DEVICE void MultiplyWarpgroupMatrix(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                            bool accumulate = true,
                                            SourceLocation here = MARCORO_HERE) {
  simt::MultiplyWarpgroupMatrix(d, 2 * kCount, simt::MatrixElement::kBf16, a, b, accumulate, here);
}
// The same of E4M3 codes; N is at most 128. Sums have fewer bits than F32 has: d must not hold more
// than a few products.
template <int kCount>
MARCORO_DEVICE void MultiplyWarpgroupCodes(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                           bool accumulate, SourceLocation here = MARCORO_HERE) {
  simt::MultiplyWarpgroupMatrix(d, 2 * kCount, simt::MatrixElement::kE4M3, a, b, accumulate, here);
}
// The products since the last call become a group.
MARCORO_DEVICE void CommitWarpgroupMatrix(SourceLocation here = MARCORO_HERE) {
  simt::CommitWarpgroupMatrix(here);
}
// Returns when at most the newest kGroups groups are still under way. `d`, of a group that has
// ended then, can be read behind it.
template <int kGroups, int kCount>
MARCORO_DEVICE void WaitWarpgroupMatrix(float (&d)[kCount], SourceLocation here = MARCORO_HERE) {
  simt::WaitWarpgroupMatrix(kGroups, d, here);
}

#else

// Keeps the compiler from moving what it does to d across this place.
template <int kCount>
MARCORO_DEVICE void HoldAccumulators(float (&d)[kCount]) {
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int kCount>
MARCORO_DEVICE void FenceWarpgroupMatrix(float (&d)[kCount], SourceLocation = {}) {
  HoldAccumulators(d);
  MARCORO_PTX_SM90A("wgmma.fence.sync.aligned;" :: : "memory");
}
template <int kCount>
MARCORO_DEVICE void MultiplyWarpgroupMatrix(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                            bool accumulate = true, SourceLocation = {}) {
  MultiplyWarpgroupMatrixPtx(d, a, b, accumulate ? 1 : 0);
}
template <int kCount>
MARCORO_DEVICE void MultiplyWarpgroupCodes(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                           bool accumulate, SourceLocation = {}) {
  MultiplyWarpgroupCodesPtx(d, a, b, accumulate ? 1 : 0);
}
MARCORO_DEVICE void CommitWarpgroupMatrix(SourceLocation = {}) {
  MARCORO_PTX_SM90A("wgmma.commit_group.sync.aligned;" :: : "memory");
}
template <int kGroups, int kCount>
MARCORO_DEVICE void WaitWarpgroupMatrix(float (&d)[kCount], SourceLocation = {}) {
  MARCORO_PTX_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
  HoldAccumulators(d);
}

#endif

}  // namespace marcoro::cuda
