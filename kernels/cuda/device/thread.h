// Which thread runs, barriers, and what the threads of a warp tell each other. Blocks are
// one-dimensional; every warp function is called by all 32 threads of a warp.
#pragma once

#include "kernels/cuda/device/platform.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

MARCORO_DEVICE int ThreadIndex() { return simt::CurrentThread().index; }
MARCORO_DEVICE int BlockThreads() { return simt::CurrentThread().block_threads; }
MARCORO_DEVICE int BlockIndexX() { return simt::CurrentThread().block_x; }
MARCORO_DEVICE int BlockIndexY() { return simt::CurrentThread().block_y; }
MARCORO_DEVICE int BlockIndexZ() { return simt::CurrentThread().block_z; }
MARCORO_DEVICE int GridX() { return simt::CurrentThread().grid_x; }
MARCORO_DEVICE int GridY() { return simt::CurrentThread().grid_y; }
// Every thread of the block arrives before any goes on.
MARCORO_DEVICE void SyncBlock(SourceLocation here = MARCORO_HERE) { simt::SyncBlock(here); }
// The same of some whole warps of the block only, `threads` in all. Barriers are numbered 1 to 15
// (0 is SyncBlock's), each for one set of warps at a time.
MARCORO_DEVICE void SyncWarps(int barrier, int threads, SourceLocation here = MARCORO_HERE) {
  simt::SyncWarps(barrier, threads, here);
}
// Orders what the warp's lanes did to shared memory; shuffles, votes and matrix functions do not.
MARCORO_DEVICE void SyncWarp(SourceLocation here = MARCORO_HERE) { simt::SyncWarp(here); }
// The value that the given lane of the warp passed. T is 4 or 8 bytes.
template <typename T>
MARCORO_DEVICE T Shuffle(T value, int lane, SourceLocation here = MARCORO_HERE) {
  return simt::Shuffle(value, lane, here);
}
template <typename T>
MARCORO_DEVICE T ShuffleXor(T value, int lane_mask, SourceLocation here = MARCORO_HERE) {
  return simt::Shuffle(value, (ThreadIndex() % kWarpThreads) ^ lane_mask, here);
}
// Bit i: what lane i passed.
MARCORO_DEVICE uint32_t Ballot(bool value, SourceLocation here = MARCORO_HERE) {
  return simt::Ballot(value, here);
}

#else

MARCORO_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
MARCORO_DEVICE int BlockThreads() { return static_cast<int>(blockDim.x); }
MARCORO_DEVICE int BlockIndexX() { return static_cast<int>(blockIdx.x); }
MARCORO_DEVICE int BlockIndexY() { return static_cast<int>(blockIdx.y); }
MARCORO_DEVICE int BlockIndexZ() { return static_cast<int>(blockIdx.z); }
MARCORO_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
MARCORO_DEVICE int GridY() { return static_cast<int>(gridDim.y); }
MARCORO_DEVICE void SyncBlock(SourceLocation = {}) { __syncthreads(); }
MARCORO_DEVICE void SyncWarps(int barrier, int threads, SourceLocation = {}) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
MARCORO_DEVICE void SyncWarp(SourceLocation = {}) { __syncwarp(); }
template <typename T>
MARCORO_DEVICE T Shuffle(T value, int lane, SourceLocation = {}) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <typename T>
MARCORO_DEVICE T ShuffleXor(T value, int lane_mask, SourceLocation = {}) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
MARCORO_DEVICE uint32_t Ballot(bool value, SourceLocation = {}) {
  return __ballot_sync(0xffffffffu, value);
}

#endif

MARCORO_DEVICE int Lane() { return ThreadIndex() % kWarpThreads; }
MARCORO_DEVICE int Warp() { return ThreadIndex() / kWarpThreads; }

}  // namespace marcoro::cuda
