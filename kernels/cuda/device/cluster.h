// Blocks that run together and reach each other's shared memory (sm_90 and newer;
// LaunchShape::cluster_blocks). Before a block's memory is accessed from outside, all blocks pass a
// cluster barrier (then it is known to run), and it does not end before the last such access: every
// block passes a cluster barrier behind that.
#pragma once

#include "kernels/cuda/device/shared_memory.h"

namespace marcoro::cuda {

#ifdef MARCORO_SIMT

// Which block of its cluster this is, from 0, and how many there are.
MARCORO_DEVICE int ClusterRank() { return simt::CurrentThread().block_rank; }
MARCORO_DEVICE int ClusterBlocks() { return simt::CurrentThread().cluster_blocks; }
// Every thread of the cluster arrives before any returns from its wait. Orders accesses to the
// cluster's shared memory and to global memory.
MARCORO_DEVICE void ArriveAtCluster(SourceLocation here = MARCORO_HERE) {
  simt::ArriveAtCluster(here);
}
MARCORO_DEVICE void WaitForCluster(SourceLocation here = MARCORO_HERE) {
  simt::WaitForCluster(here);
}

#else

MARCORO_DEVICE int ClusterRank() {
  uint32_t rank = 0;
  MARCORO_PTX_SM90("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
MARCORO_DEVICE int ClusterBlocks() {
  uint32_t blocks = 1;
  MARCORO_PTX_SM90("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return static_cast<int>(blocks);
}
MARCORO_DEVICE void ArriveAtCluster(SourceLocation = {}) {
  MARCORO_PTX_SM90("barrier.cluster.arrive.release.aligned;" :: : "memory");
}
MARCORO_DEVICE void WaitForCluster(SourceLocation = {}) {
  MARCORO_PTX_SM90("barrier.cluster.wait.acquire.aligned;" :: : "memory");
}

#endif

MARCORO_DEVICE void SyncCluster(SourceLocation here = MARCORO_HERE) {
  ArriveAtCluster(here);
  WaitForCluster(here);
}

// The array that lies at the same place as `mine` in another block of the cluster.
template <typename T>
class ClusterArray {
 public:
  MARCORO_DEVICE ClusterArray(const SharedArray<T>& mine, int block_rank,
                              SourceLocation here = MARCORO_HERE) {
#ifdef MARCORO_SIMT
    data_ = static_cast<T*>(simt::SharedOfBlock(mine.Address(0), block_rank, here));
    count_ = mine.count();
#else
    uint64_t address = 0;
    MARCORO_PTX_SM90(
        "mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(reinterpret_cast<uint64_t>(mine.Address(0))),
        "r"(block_rank));
    data_ = reinterpret_cast<T*>(address);
#endif
  }

  MARCORO_DEVICE T Load(int i, SourceLocation here = MARCORO_HERE) const {
    return LoadAs<T>(i, here);
  }
  MARCORO_DEVICE void Store(int i, T value, SourceLocation here = MARCORO_HERE) const {
    StoreAs<T>(i, value, here);
  }
  // sizeof(V) bytes from element i on, in one access; aligned to sizeof(V).
  template <typename V>
  MARCORO_DEVICE V LoadAs(int i, SourceLocation here = MARCORO_HERE) const {
#ifdef MARCORO_SIMT
    simt::CheckIndex(data_, i, sizeof(V), sizeof(T), count_, here);
    simt::NoteSharedRead(data_ + i, sizeof(V), here);
#endif
    return *reinterpret_cast<const V*>(data_ + i);
  }
  template <typename V>
  MARCORO_DEVICE void StoreAs(int i, V value, SourceLocation here = MARCORO_HERE) const {
#ifdef MARCORO_SIMT
    simt::CheckIndex(data_, i, sizeof(V), sizeof(T), count_, here);
    simt::NoteSharedWrite(data_ + i, sizeof(V), here);
#endif
    *reinterpret_cast<V*>(data_ + i) = value;
  }

 private:
  T* data_;
#ifdef MARCORO_SIMT
  int count_;
#endif
};

}  // namespace marcoro::cuda
