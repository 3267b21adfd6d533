// Sums and maxima over a warp or a block, in one fixed order.
#pragma once

#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"

namespace marcoro::cuda {

// The sum over the 32 lanes, a butterfly; the same bits in each.
MARCORO_DEVICE float SumOverWarp(float value) {
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    value = Add(value, ShuffleXor(value, mask));
  }
  return value;
}

MARCORO_DEVICE float MaxOverWarp(float value) {
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    value = Max(value, ShuffleXor(value, mask));
  }
  return value;
}

// The sum over the block: its warps' sums, first to last; the same bits in each thread. `warp_sums`
// has an element for each warp and is free again after the next barrier.
MARCORO_DEVICE float SumOverBlock(float value, const SharedArray<float>& warp_sums) {
  value = SumOverWarp(value);
  if (Lane() == 0) warp_sums.Store(Warp(), value);
  SyncBlock();
  float sum = 0;
  for (int warp = 0; warp < BlockThreads() / kWarpThreads; ++warp) {
    sum = Add(sum, warp_sums.Load(warp));
  }
  return sum;
}

}  // namespace marcoro::cuda
