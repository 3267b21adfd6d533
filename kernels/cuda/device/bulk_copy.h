// Copies from global to shared memory that one thread asks for and the copy engine makes (sm_90 and
// newer). They end at an mbarrier: its phase expects their bytes (ArriveAndExpect), and who waits
// for that phase may read them.
#pragma once

#include "kernels/cuda/device/mbarrier.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// `bytes` and both addresses are multiples of 16. Whoever read or wrote that shared memory before
// is ordered before this call.
MARCORO_DEVICE void CopyBulk(void* shared, const void* global, int bytes, const Mbarrier& ended,
                             SourceLocation here = MARCORO_HERE) {
  simt::CopyBulk(shared, global, bytes, ended.address(), /*block_mask=*/0, here);
}
// The same into every block of the cluster whose bit is set, at the same place in each, and ending
// at the barrier that each has at the place of `ended`.
MARCORO_DEVICE void CopyBulkToBlocks(void* shared, const void* global, int bytes,
                                     const Mbarrier& ended, uint16_t block_mask,
                                     SourceLocation here = MARCORO_HERE) {
  simt::CopyBulk(shared, global, bytes, ended.address(), block_mask, here);
}
// What this thread stored to shared memory before can be read by the copy engine and by
// MultiplyWarpgroupMatrix, of those threads too that a barrier after this call orders behind it.
MARCORO_DEVICE void FenceAsyncProxy() { simt::FenceAsyncProxy(); }

#else

MARCORO_DEVICE void CopyBulk(void* shared, const void* global, int bytes, const Mbarrier& ended,
                             SourceLocation = {}) {
  MARCORO_PTX_SM90(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes),
      "r"(SharedAddress(ended.address())) : "memory");
}
MARCORO_DEVICE void CopyBulkToBlocks(void* shared, const void* global, int bytes,
                                     const Mbarrier& ended, uint16_t block_mask,
                                     SourceLocation = {}) {
  MARCORO_PTX_SM90(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(SharedAddress(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(SharedAddress(ended.address())),
      "h"(block_mask) : "memory");
}
MARCORO_DEVICE void FenceAsyncProxy() {
  MARCORO_PTX_SM90("fence.proxy.async.shared::cta;" :: : "memory");
}

#endif

}  // namespace marcoro::cuda
