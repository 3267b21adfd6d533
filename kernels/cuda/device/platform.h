// What kernels are written in. A kernel source (.cu) is compiled twice: by nvcc for GPUs, and, with
// MARCORO_SIMT defined, as plain C++ for the emulator in tests/kernels/simt, which runs it where no
// GPU is. Sources touch the machine only through the wrappers of this folder, each of which has one
// body for the GPU and one for the emulator; nothing else differs.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef MARCORO_SIMT

#include "tests/kernels/simt/simt.h"

// A function that runs on the device only; one that is a kernel, with the most threads of its block
// and the least blocks that a multiprocessor holds at once.
#define MARCORO_DEVICE inline
#define MARCORO_KERNEL(max_threads, min_blocks) void
#define MARCORO_RESTRICT
#define MARCORO_UNROLL_LOOP
#define MARCORO_KEEP_LOOP
// Before a kernel's parameter of a const type whose address the kernel takes.
#define MARCORO_GRID_CONSTANT

#else

#define MARCORO_DEVICE __device__ __forceinline__
#define MARCORO_KERNEL(max_threads, min_blocks) \
  __global__ void __launch_bounds__(max_threads, min_blocks)
#define MARCORO_RESTRICT __restrict__
// Before a loop of constant length: its variables live in registers only if it is unrolled.
#define MARCORO_UNROLL_LOOP _Pragma("unroll")
// Before a loop that would only make the code longer.
#define MARCORO_KEEP_LOOP _Pragma("unroll 1")
#define MARCORO_GRID_CONSTANT __grid_constant__

// PTX that sm_90 and newer have (clusters, mbarriers, bulk copies), and that sm_90a alone has
// (wgmma). Every source compiles for every architecture; where it is not there, it is a trap.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define MARCORO_PTX_SM90(...) asm volatile(__VA_ARGS__)
#else
#define MARCORO_PTX_SM90(...) __trap()
#endif
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define MARCORO_PTX_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define MARCORO_PTX_SM90A(...) __trap()
#endif

#endif

namespace marcoro::cuda {

inline constexpr int kWarpThreads = 32;

// Where a wrapper was called: the emulator reports misuse by file and line.
#ifdef MARCORO_SIMT
using SourceLocation = simt::SourceLocation;
#define MARCORO_HERE ::marcoro::cuda::SourceLocation::current()
#else
struct SourceLocation {};
#define MARCORO_HERE ::marcoro::cuda::SourceLocation()
#endif

}  // namespace marcoro::cuda
