// Copies of a box of a row-major matrix into shared memory by the copy engine (sm_90 and newer),
// which finds the addresses itself and can swizzle the rows. Ends at an mbarrier like CopyBulk.
//
// A kernel takes the map as `const MARCORO_GRID_CONSTANT TensorMap map`.
#pragma once

#include "kernels/cuda/device/mbarrier.h"

#ifndef MARCORO_SIMT
#include <cuda.h>
#include <cuda_runtime.h>
#endif

namespace marcoro::cuda {

// A matrix in global memory and the box that one copy takes of it.
struct TensorMapShape {
  const void* data = nullptr;  // aligned to 16
  int element_bytes = 2;       // 1: bytes, 2: BF16, 4: F32
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride_bytes = 0;  // from row to row, a multiple of 16
  int box_rows = 0;          // at most 256
  int box_columns = 0;  // at most 256; a multiple of 16 bytes, and exactly 128 bytes if swizzled
  // In shared memory the box's rows lie one behind the other. Swizzled: as SwizzledOffset of
  // warpgroup_matrix.h says.
  bool swizzled = true;
};

#ifdef MARCORO_SIMT

using TensorMap = simt::TensorMap;

// False if no copy engine takes such a shape, or (on a GPU) the driver cannot encode it.
inline bool EncodeTensorMap(const TensorMapShape& shape, TensorMap* map) {
  *map = {.data = shape.data,
          .element_bytes = shape.element_bytes,
          .rows = shape.rows,
          .columns = shape.columns,
          .stride_bytes = shape.stride_bytes,
          .box_rows = shape.box_rows,
          .box_columns = shape.box_columns,
          .swizzled = shape.swizzled};
  return simt::IsTensorMap(*map);
}

// The box whose first element is (row, column) of the matrix; zeros where it is outside. `shared`
// is aligned to 128, of a swizzled box to 1024. The phase of `ended` counts all bytes of the box.
MARCORO_DEVICE void CopyTensor(void* shared, const TensorMap& map, int row, int column,
                               const Mbarrier& ended, SourceLocation here = MARCORO_HERE) {
  simt::CopyTensor(shared, map, row, column, ended.address(), /*block_mask=*/0, here);
}
// The same into every block of the cluster whose bit is set: see CopyBulkToBlocks.
MARCORO_DEVICE void CopyTensorToBlocks(void* shared, const TensorMap& map, int row, int column,
                                       const Mbarrier& ended, uint16_t block_mask,
                                       SourceLocation here = MARCORO_HERE) {
  simt::CopyTensor(shared, map, row, column, ended.address(), block_mask, here);
}
// Has the map ready for the first copy.
MARCORO_DEVICE void PrefetchTensorMap(const TensorMap&) {}

#else

struct TensorMap {
  CUtensorMap encoded;
};

inline bool EncodeTensorMap(const TensorMapShape& shape, TensorMap* map) {
  // Through the runtime, so that nothing links the driver's library.
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  constexpr unsigned kVersion = 12000;  // the first that has it
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kVersion,
                                       cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return false;
  }
  const CUtensorMapDataType type = shape.element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : shape.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                              : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(shape.columns),
                               static_cast<cuuint64_t>(shape.rows)};
  const cuuint64_t stride = static_cast<cuuint64_t>(shape.stride_bytes);
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(shape.box_columns),
                             static_cast<cuuint32_t>(shape.box_rows)};
  const cuuint32_t element_strides[2] = {1, 1};
  return reinterpret_cast<Encode>(function)(
             &map->encoded, type, 2, const_cast<void*>(shape.data), sizes, &stride, box,
             element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             shape.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

MARCORO_DEVICE void CopyTensor(void* shared, const TensorMap& map, int row, int column,
                               const Mbarrier& ended, SourceLocation = {}) {
  MARCORO_PTX_SM90(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(SharedAddress(ended.address())) : "memory");
}
MARCORO_DEVICE void CopyTensorToBlocks(void* shared, const TensorMap& map, int row, int column,
                                       const Mbarrier& ended, uint16_t block_mask,
                                       SourceLocation = {}) {
  MARCORO_PTX_SM90(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(SharedAddress(ended.address())),
      "h"(block_mask) : "memory");
}
MARCORO_DEVICE void PrefetchTensorMap(const TensorMap& map) {
  MARCORO_PTX_SM90("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

#endif

}  // namespace marcoro::cuda
