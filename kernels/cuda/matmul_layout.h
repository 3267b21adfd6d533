// How packed weights lie in memory, and in which order a product is summed.
//
// Sums. Each of a weight's segments consists of one or two equal leaves. A leaf's product is one
// chain of tensor-core products, 16 columns each, in order; leaves are summed in a balanced tree. A
// segment's sum is multiplied by its row's scale on its way up. How a segment is cut depends on its
// length only, so that shards of a weight have the same leaves as the whole. Two leaves where they
// stay long: one token's work then has enough warps to keep a GPU's memory busy, and many tokens'
// work rarely stops to fold. Tensor cores sum products of two E4M3 with some 22 bits: of every 128
// columns of a leaf, from its first one on, the sum begins at zero, and is added to the leaf's in
// F32.
//
// Memory. Tiles of 16 rows, each contiguous; in a tile its leaves; in a leaf, padded with zeros,
// steps of 32 columns; in a step the A fragments of two m16n8k16 products in the order of lanes, so
// that a lane loads 16 bytes at once (E4M3; twice 16 of BF16) and a warp what is contiguous. For
// activations of E4M3 a step is the A fragment of one m16n8k32 product: codes as they are.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace marcoro::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kStepColumns = 32;
// Steps of a sum of products of two E4M3, before it is added to its leaf's.
inline constexpr int kPromotedSteps = 4;
// Segments that are at least twice this long, and even in their number of steps, have two leaves.
inline constexpr int kShortestHalf = 2048;

// Bytes of a step in a tile.
constexpr int StepBytes(DType dtype) {
  return kTileRows * kStepColumns * static_cast<int>(SizeOf(dtype));
}

struct MatmulLayout {
  int rows = 0;  // N
  int segment_columns = 0;
  int leaf_columns = 0;
  int leaf_steps = 0;
  int leaves = 0;       // of all segments
  int scale_level = 0;  // of the tree: nodes there are whole segments (0: the leaves are)
  int tiles = 0;
  int64_t leaf_bytes = 0;
  int64_t tile_bytes = 0;
};

constexpr MatmulLayout MakeMatmulLayout(const WeightShape& shape) {
  MatmulLayout layout;
  layout.rows = static_cast<int>(shape.rows);
  layout.segment_columns = static_cast<int>(shape.columns / shape.segments);
  const bool halves = layout.segment_columns >= 2 * kShortestHalf &&
                      layout.segment_columns % (2 * kStepColumns) == 0;
  layout.scale_level = halves ? 1 : 0;
  layout.leaf_columns = layout.segment_columns >> layout.scale_level;
  layout.leaf_steps = (layout.leaf_columns + kStepColumns - 1) / kStepColumns;
  layout.leaves = shape.segments << layout.scale_level;
  layout.tiles = (layout.rows + kTileRows - 1) / kTileRows;
  layout.leaf_bytes = int64_t{layout.leaf_steps} * StepBytes(shape.dtype);
  layout.tile_bytes = layout.leaves * layout.leaf_bytes;
  return layout;
}

// A packed weight as kernels see it.
struct WeightView {
  MatmulLayout layout;
  const char* tiles = nullptr;
  const float* scales = nullptr;  // (rows), null for BF16
  // Of each tile the rows with a NaN code, bit r for row r; null for BF16. E4M3 has no room for NaN
  // on its way to BF16, so these rows' products are made NaN in the end.
  const uint32_t* nan_rows = nullptr;
};

constexpr int Log2(int power_of_two) {
  int result = 0;
  while (1 << result < power_of_two) ++result;
  return result;
}

inline WeightView MakeWeightView(const PackedWeight& weight) {
  WeightView view;
  view.layout = MakeMatmulLayout(weight.shape);
  view.tiles = static_cast<const char*>(weight.data);
  if (weight.shape.dtype == DType::kF8E4M3) {
    view.scales = weight.scales;
    view.nan_rows =
        reinterpret_cast<const uint32_t*>(view.tiles + view.layout.tiles * view.layout.tile_bytes);
  }
  return view;
}

}  // namespace marcoro::cuda
