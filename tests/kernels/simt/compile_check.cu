// Uses every wrapper for sm_90 once, so that nvcc and ptxas see its PTX. Only compiled.
#include "kernels/cuda/device/bulk_copy.h"
#include "kernels/cuda/device/cluster.h"
#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/flags.h"
#include "kernels/cuda/device/tensor_map.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/warpgroup_matrix.h"

namespace marcoro::cuda {

template <int kColumns>
MARCORO_KERNEL(128, 1)
MultiplyKernel(const uint16_t* a, const MARCORO_GRID_CONSTANT TensorMap b, float* out) {
  constexpr int kBytes = kColumns * kSwizzledRowBytes;
  const Mbarrier loaded(kBytes);
  if (ThreadIndex() == 0) {
    PrefetchTensorMap(b);
    loaded.Initialize(1);
    PublishMbarriers();
  }
  SyncBlock();
  if (ThreadIndex() == 0) {
    loaded.ArriveAndExpect(kBytes);
    CopyTensor(SharedMemory(), b, 0, 0, loaded);
  }
  WaitForKernelAhead();
  loaded.Wait(0);
  float d[kColumns / 2];
  uint32_t registers[4][4];
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 16; ++i) {
    registers[i / 4][i % 4] = reinterpret_cast<const uint32_t*>(a)[i * 128 + ThreadIndex()];
  }
  FenceWarpgroupMatrix(d);
  MARCORO_UNROLL_LOOP
  for (int k = 0; k < 4; ++k) {
    MultiplyWarpgroupMatrix(d, registers[k], MatrixDescriptor(SharedMemory() + k * 32), k > 0);
  }
  CommitWarpgroupMatrix();
  WaitWarpgroupMatrix<0>(d);
  LaunchDependents();
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < kColumns / 2; ++i) out[i * 128 + ThreadIndex()] = d[i];
}

MARCORO_KERNEL(256, 1)
ClusterKernel(const float* in, const MARCORO_GRID_CONSTANT TensorMap map, float* out,
              uint32_t* flag) {
  const SharedArray<float> mine(0, 1024);
  const Mbarrier loaded(8192);
  const Mbarrier read(8200);
  if (ThreadIndex() == 0) {
    loaded.Initialize(1);
    read.Initialize(ClusterBlocks());
    PublishMbarriers();
  }
  SyncCluster();
  if (ThreadIndex() == 0) {
    loaded.ArriveAndExpect(3 * 4096);
    CopyBulk(mine.Address(0), in, 4096, loaded);
    CopyBulkToBlocks(mine.Address(0), in, 4096, loaded, 3);
    CopyTensorToBlocks(mine.Address(0), map, 0, 0, loaded, 3);
  }
  loaded.Wait(0);
  const int neighbour = (ClusterRank() + 1) % ClusterBlocks();
  const ClusterArray<float> other(mine, neighbour);
  const float value = other.Load(ThreadIndex());
  SyncWarps(1 + ThreadIndex() / 128, 128);
  if (ThreadIndex() == 0) read.ArriveAt(neighbour);
  read.Arrive();
  read.WaitForCluster(0);
  other.Store(ThreadIndex(), value);
  FenceAsyncProxy();
  SyncCluster();
  out[ThreadIndex()] = mine.Load(ThreadIndex());
  StoreFlag(flag, 1);
  while (LoadFlag(flag + 1) == 0) SpinPause();
}

template __global__ void MultiplyKernel<8>(const uint16_t*, const MARCORO_GRID_CONSTANT TensorMap,
                                           float*);
template __global__ void MultiplyKernel<16>(const uint16_t*, const MARCORO_GRID_CONSTANT TensorMap,
                                            float*);
template __global__ void MultiplyKernel<32>(const uint16_t*, const MARCORO_GRID_CONSTANT TensorMap,
                                            float*);
template __global__ void MultiplyKernel<64>(const uint16_t*, const MARCORO_GRID_CONSTANT TensorMap,
                                            float*);
template __global__ void MultiplyKernel<128>(const uint16_t*, const MARCORO_GRID_CONSTANT TensorMap,
                                             float*);
template __global__ void MultiplyKernel<256>(const uint16_t*, const MARCORO_GRID_CONSTANT TensorMap,
                                             float*);

bool EncodeForCheck(const TensorMapShape& shape, TensorMap* map) {
  return EncodeTensorMap(shape, map);
}

}  // namespace marcoro::cuda
