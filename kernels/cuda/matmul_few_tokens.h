// The few tokens' kernel from its warps' sums on: up the tree, through the blocks of a cluster
// where they share a tile's leaves, and out.
#pragma once

#include "kernels/cuda/device/cluster.h"
#include "kernels/cuda/matmul_fragments.h"
#include "kernels/cuda/matmul_kernels.h"

namespace marcoro::cuda {

// Floats from one token's sums to the next's.
inline constexpr int kSumStride = kTileRows + 4;

struct FewTokensWork {
  MatmulOperands operands;
  FewTokensMemory memory;
  int slots = 0;
  int stage_steps = 0;
  int tile_blocks = 0;     // neighbours that share a tile's leaves
  bool clustered = false;  // they are a cluster
};

// Which leaves and which tiles this block has.
struct BlockPlace {
  int part;        // of the tiles' leaves
  int first_leaf;  // of the part
  int group;       // of blocks that share tiles
  int groups;

  MARCORO_DEVICE explicit BlockPlace(const FewTokensWork& work)
      : part(BlockIndexX() % work.tile_blocks),
        first_leaf(part * work.operands.block_leaves),
        group(BlockIndexX() / work.tile_blocks),
        groups(GridX() / work.tile_blocks) {}

  // The tile that a slot computes in an iteration.
  MARCORO_DEVICE int Tile(const FewTokensWork& work, int iteration, int slot) const {
    return (iteration * work.slots + slot) * groups + group;
  }
};

// Segments that begin in a block's leaves.
constexpr int BlockSegments(const MatmulLayout& layout, int block_leaves) {
  const int segments = block_leaves >> layout.scale_level;
  return segments > 0 ? segments : 1;
}

// The warps' sums, [warp][token][row], and behind them the factors of the block's rows.
template <int kTokenTiles>
struct SumsInMemory {
  static constexpr int kTokens = kTokenTiles * 8;
  const FewTokensWork& work;
  const BlockPlace& place;
  // Those of the block's segments, by token; null if there are none.
  const SharedArray<float>* token_scales;
  SharedArray<float> sums;
  SharedArray<float> factors;

  MARCORO_DEVICE SumsInMemory(const FewTokensWork& work_in, const BlockPlace& place_in,
                              const SharedArray<float>* token_scales_in)
      : work(work_in),
        place(place_in),
        token_scales(token_scales_in),
        sums(work.memory.sums, BlockThreads() / kWarpThreads * kTokens * kSumStride),
        factors(work.memory.sums + BlockThreads() / kWarpThreads * kTokens * kSumStride * 4,
                work.slots * kTileRows) {}

  MARCORO_DEVICE void Store(const float (&c)[kTokenTiles][4]) const {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kTokenTiles; ++i) {
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 4; ++j) {
        const int token = i * 8 + Lane() % 4 * 2 + j % 2;
        const int row = Lane() / 4 + j / 2 * 8;
        sums.Store((Warp() * kTokens + token) * kSumStride + row, c[i][j]);
      }
    }
  }

  // An element of the block's tiles of an iteration.
  struct Element {
    int slot;
    int token;
    int row;
    int out_row;
    bool valid;
  };
  MARCORO_DEVICE Element ElementAt(int i, int iteration) const {
    Element at;
    at.row = i % kTileRows;
    at.token = i / kTileRows % kTokens;
    at.slot = i / kTileRows / kTokens;
    at.out_row = place.Tile(work, iteration, at.slot) * kTileRows + at.row;
    at.valid = at.token < work.operands.x.tokens && at.out_row < work.operands.weight.layout.rows;
    return at;
  }
  MARCORO_DEVICE int Elements() const { return work.slots * kTokens * kTileRows; }
  // Where a slot's leaf has the element.
  MARCORO_DEVICE int Index(const Element& at, int leaf) const {
    return ((at.slot * work.operands.block_leaves + leaf) * kTokens + at.token) * kSumStride +
           at.row;
  }
  MARCORO_DEVICE float Factor(const Element& at) const {
    return factors.Load(at.slot * kTileRows + at.row);
  }

  // The node over the block's leaves.
  MARCORO_DEVICE float Sum(const Element& at) const {
    const MatmulLayout& layout = work.operands.weight.layout;
    const int leaves = work.operands.block_leaves;
    const int segments = BlockSegments(layout, leaves);
    const float factor = Factor(at);
    const auto load = [&](int leaf) { return sums.Load(Index(at, leaf)); };
    const auto scale = [&](float node, int leaf) {
      node = Multiply(node, factor);
      if (token_scales == nullptr) return node;
      return Multiply(node, token_scales->Load(at.token * segments + (leaf >> layout.scale_level)));
    };
    return SumTreeOf(leaves, 0, layout.scale_level, scale, load);
  }

  MARCORO_DEVICE void WriteBlock(int iteration) const {
    float* out = work.operands.out.data + place.part * work.operands.out.part_stride;
    for (int i = ThreadIndex(); i < Elements(); i += BlockThreads()) {
      const Element at = ElementAt(i, iteration);
      if (at.valid) out[at.token * work.operands.out.stride + at.out_row] = Sum(at);
    }
  }

  // The nodes of the cluster's blocks take the places of their slots' first leaves; then each block
  // sums and writes its share of the elements.
  MARCORO_DEVICE void WriteCluster(int iteration) const {
    for (int i = ThreadIndex(); i < Elements(); i += BlockThreads()) {
      const Element at = ElementAt(i, iteration);
      if (at.valid) sums.Store(Index(at, 0), Sum(at));
    }
    SyncCluster();
    for (int i = place.part * BlockThreads() + ThreadIndex(); i < Elements();
         i += work.tile_blocks * BlockThreads()) {
      const Element at = ElementAt(i, iteration);
      if (!at.valid) continue;
      work.operands.out.data[at.token * work.operands.out.stride + at.out_row] = SumOfCluster(at);
    }
    SyncCluster();  // nobody's sums are overwritten before all have read them
  }

 private:
  MARCORO_DEVICE float SumOfCluster(const Element& at) const {
    const ActivationView& x = work.operands.x;
    const int level = Log2(work.operands.block_leaves);
    const int scale_level = work.operands.weight.layout.scale_level;
    const auto load = [&](int part) { return ClusterArray<float>(sums, part).Load(Index(at, 0)); };
    const auto scale = [&](float node, int part) {
      node = Multiply(node, Factor(at));
      if (token_scales == nullptr) return node;
      return Multiply(node, x.scales[at.token * x.scale_stride + (part >> (scale_level - level))]);
    };
    // Nodes of whole segments have been scaled.
    const int scaled = scale_level > level ? scale_level : -1;
    switch (work.tile_blocks) {
      case 2:
        return SumTree<2>(level, scaled, scale, load);
      case 4:
        return SumTree<4>(level, scaled, scale, load);
      default:
        return SumTree<8>(level, scaled, scale, load);
    }
  }
};

}  // namespace marcoro::cuda
