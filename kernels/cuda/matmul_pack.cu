// Packing, once per weight when a model is loaded. A block packs a tile; a lane gathers the 16
// bytes that it will later load, element by element: a warp reads 32 neighbouring bytes of each of
// 16 rows (E4M3), whole sectors of memory, and writes 512 bytes.
#include "kernels/check.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/matmul_fragments.h"
#include "kernels/cuda/matmul_layout.h"
#include "kernels/cuda/ops.h"

namespace marcoro::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;

struct PackWork {
  MatmulLayout layout;
  int64_t columns = 0;
  int first_tile = 0;
  const void* source = nullptr;  // of first_tile's first row
  char* tiles = nullptr;
  uint32_t* nan_rows = nullptr;  // null for BF16
};

// A leaf's elements in the tile that a block packs. Zero beyond the leaf and beyond the last row.
template <typename Element>
struct LeafOfTile {
  const Element* source;
  int64_t columns;
  int rows;
  int leaf_columns;

  MARCORO_DEVICE uint32_t At(int row, int column) const {
    if (row >= rows || column >= leaf_columns) return 0;
    return source[row * columns + column];
  }
};

MARCORO_DEVICE bool IsNanCode(uint32_t code) { return (code & 0x7fu) == 0x7fu; }

// Where the two elements of a[i] lie in the fragment of 16 columns (see device/matrix.h).
MARCORO_DEVICE int FragmentRow(int i) { return Lane() / 4 + i % 2 * 8; }
MARCORO_DEVICE int FragmentColumn(int i) { return Lane() % 4 * 2 + i / 2 * 8; }

// Returns the rows of NaN that this lane saw.
MARCORO_DEVICE uint32_t PackStep(const LeafOfTile<uint8_t>& leaf, int step, char* to) {
  uint32_t nan_rows = 0;
  Words4 words;
  MARCORO_UNROLL_LOOP
  for (int w = 0; w < 4; ++w) {
    uint32_t pair[2];
    MARCORO_UNROLL_LOOP
    for (int p = 0; p < 2; ++p) {
      const int i = w % 2 * 2 + p;
      const int row = FragmentRow(i);
      const int column = step * kStepColumns + w / 2 * 16 + FragmentColumn(i);
      const uint32_t low = leaf.At(row, column);
      const uint32_t high = leaf.At(row, column + 1);
      if (IsNanCode(low) || IsNanCode(high)) nan_rows |= 1u << row;
      pair[p] = ShiftedPair(low, high);
    }
    words.word[w] = PackPairs(pair[0], pair[1]);
  }
  *reinterpret_cast<Words4*>(to + Lane() * 16) = words;
  return nan_rows;
}

// The same for activations of E4M3.
MARCORO_DEVICE uint32_t PackCodeStep(const LeafOfTile<uint8_t>& leaf, int step, char* to) {
  uint32_t nan_rows = 0;
  Words4 words = {};
  MARCORO_UNROLL_LOOP
  for (int w = 0; w < 4; ++w) {
    const int row = FragmentRow(w);
    const int column = step * kStepColumns + w / 2 * 16 + Lane() % 4 * 4;
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      const uint32_t code = leaf.At(row, column + i);
      if (IsNanCode(code)) nan_rows |= 1u << row;
      words.word[w] |= code << (i * 8);
    }
  }
  *reinterpret_cast<Words4*>(to + Lane() * 16) = words;
  return nan_rows;
}

MARCORO_DEVICE uint32_t PackStep(const LeafOfTile<uint16_t>& leaf, int step, char* to) {
  MARCORO_UNROLL_LOOP
  for (int k = 0; k < 2; ++k) {
    Words4 words;
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      const int column = step * kStepColumns + k * 16 + FragmentColumn(i);
      words.word[i] = leaf.At(FragmentRow(i), column) | leaf.At(FragmentRow(i), column + 1) << 16;
    }
    *reinterpret_cast<Words4*>(to + k * StepBytes(DType::kBF16) / 2 + Lane() * 16) = words;
  }
  return 0;
}

// The bits that any thread of the block passed.
MARCORO_DEVICE uint32_t OrOverBlock(uint32_t bits) {
  const SharedArray<uint32_t> warps(0, kWarps);
  MARCORO_UNROLL_LOOP
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) bits |= ShuffleXor(bits, mask);
  if (Lane() == 0) warps.Store(Warp(), bits);
  SyncBlock();
  bits = 0;
  for (int warp = 0; warp < kWarps; ++warp) bits |= warps.Load(warp);
  return bits;
}

template <DType kWeight, typename Element, bool kCodes>
MARCORO_KERNEL(kThreads, 1)
PackKernel(PackWork work) {
  const MatmulLayout& layout = work.layout;
  const int block = BlockIndexX();
  const int tile = work.first_tile + block;
  const int first_row = tile * kTileRows;
  const Element* source = static_cast<const Element*>(work.source) +
                          static_cast<int64_t>(block) * kTileRows * work.columns;
  char* to = work.tiles + tile * layout.tile_bytes;
  uint32_t nan_rows = 0;
  for (int i = Warp(); i < layout.leaves * layout.leaf_steps; i += kWarps) {
    const int leaf = i / layout.leaf_steps;
    const LeafOfTile<Element> elements = {
        .source = source + static_cast<int64_t>(leaf) * layout.leaf_columns,
        .columns = work.columns,
        .rows = layout.rows - first_row,
        .leaf_columns = layout.leaf_columns};
    char* step = to + static_cast<int64_t>(i) * StepBytes(kWeight);
    if constexpr (kCodes) {
      nan_rows |= PackCodeStep(elements, i % layout.leaf_steps, step);
    } else {
      nan_rows |= PackStep(elements, i % layout.leaf_steps, step);
    }
  }
  if (work.nan_rows == nullptr) return;
  nan_rows = OrOverBlock(nan_rows);
  if (ThreadIndex() == 0) work.nan_rows[tile] = nan_rows;
}

}  // namespace

size_t WeightBytes(const WeightShape& shape) {
  MARCORO_CHECK(shape.dtype == DType::kF8E4M3 || shape.dtype == DType::kBF16);
  const MatmulLayout layout = MakeMatmulLayout(shape);
  const size_t tile_bytes = static_cast<size_t>(layout.tile_bytes) +
                            (shape.dtype == DType::kF8E4M3 ? sizeof(uint32_t) : 0);
  return static_cast<size_t>(layout.tiles) * tile_bytes;
}

void PackWeight(Stream stream, const PackedWeight& weight, int64_t first_row, int64_t count,
                const void* source, DType activations) {
  const WeightView view = MakeWeightView(weight);
  const PackWork work = {.layout = view.layout,
                         .columns = weight.shape.columns,
                         .first_tile = static_cast<int>(first_row / kTileRows),
                         .source = source,
                         .tiles = static_cast<char*>(weight.data),
                         .nan_rows = const_cast<uint32_t*>(view.nan_rows)};
  const LaunchShape shape = {.grid_x = static_cast<int>((count + kTileRows - 1) / kTileRows),
                             .threads = kThreads,
                             .shared_bytes = kWarps * static_cast<int>(sizeof(uint32_t))};
  if (weight.shape.dtype == DType::kBF16) {
    Launch(stream, shape, PackKernel<DType::kBF16, uint16_t, false>, work);
  } else if (activations == DType::kF8E4M3) {
    Launch(stream, shape, PackKernel<DType::kF8E4M3, uint8_t, true>, work);
  } else {
    Launch(stream, shape, PackKernel<DType::kF8E4M3, uint8_t, false>, work);
  }
}

}  // namespace marcoro::cuda
