// A warp's sums in the kernels for many tokens: as products leave them, on their way up the tree,
// and out.
//
// S, what follows from a kernel's sizes:
//   kTilesOfWarp     tiles of 16 rows that a warp has
//   kTileJump        rows from one of them to the next
//   kTokenTiles      tiles of 8 tokens that a block has; kTokens, tokens
//   kRegisterLevels  levels of the tree that wait in registers, outside this file
//   kLevelFloats     of shared memory, that a level waits in
//   SharedLevels(block_leaves)
#pragma once

#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/matmul_fragments.h"
#include "kernels/cuda/matmul_kernels.h"

namespace marcoro::cuda {

// Also what waits of the sums. Fragment i is that of 16 rows and 8 tokens; rows and tokens of its
// elements are those of device/matrix.h.
template <typename S>
struct WarpSums {
  static constexpr int kFragments = S::kTilesOfWarp * S::kTokenTiles;
  // Between a thread's elements in shared memory.
  static constexpr int kJump = kMostManyWarps * kWarpThreads;
  float c[kFragments][4];

  MARCORO_DEVICE static int Fragment(int tile, int token_tile) {
    return tile * S::kTokenTiles + token_tile;
  }
  // Of element c[i][j], from the warp's first row and the block's first token on.
  MARCORO_DEVICE static int Row(int i, int j) {
    return i / S::kTokenTiles * S::kTileJump + j / 2 * 8 + Lane() / 4;
  }
  MARCORO_DEVICE static int Token(int i, int j) {
    return i % S::kTokenTiles * 8 + Lane() % 4 * 2 + j % 2;
  }

  MARCORO_DEVICE void Clear() {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kFragments; ++i) {
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 4; ++j) c[i][j] = 0;
    }
  }
  // factor[2 t + h] belongs to the lane's row in half h of the warp's tile t.
  MARCORO_DEVICE void Scale(const float (&factor)[2 * S::kTilesOfWarp]) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kFragments; ++i) {
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 4; ++j) {
        c[i][j] = Multiply(c[i][j], factor[i / S::kTokenTiles * 2 + j / 2]);
      }
    }
  }
  MARCORO_DEVICE void Add(const WarpSums& left) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kFragments; ++i) {
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 4; ++j) c[i][j] = cuda::Add(left.c[i][j], c[i][j]);
    }
  }
  // The same of sums in shared memory: this thread's, each kJump behind the one before.
  MARCORO_DEVICE void Add(const SharedArray<float>& memory, int first) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kFragments; ++i) {
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 4; ++j) {
        c[i][j] = cuda::Add(memory.Load(first + (i * 4 + j) * kJump), c[i][j]);
      }
    }
  }
  MARCORO_DEVICE void Store(const SharedArray<float>& memory, int first) const {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kFragments; ++i) {
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 4; ++j) memory.Store(first + (i * 4 + j) * kJump, c[i][j]);
    }
  }
};

// The tree: nodes wait in shared memory, from `memory_offset` on, for their right neighbours.
template <typename S>
class SumsTree {
 public:
  MARCORO_DEVICE SumsTree(const MatmulOperands& operands, int first_row, int memory_offset)
      : leaves_(operands.block_leaves),
        scale_level_(operands.weight.layout.scale_level),
        memory_(memory_offset, S::SharedLevels(leaves_) * S::kLevelFloats) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 2 * S::kTilesOfWarp; ++i) {
      RawFactor raw;
      raw.Load(operands.weight, first_row + i / 2 * S::kTileJump + i % 2 * 8 + Lane() / 4);
      factor_[i] = raw.Value();
    }
  }

  // For sums that have become nodes of the given level.
  MARCORO_DEVICE void ScaleAt(int level, WarpSums<S>& sums) const {
    if (level == scale_level_) sums.Scale(factor_);
  }
  // Takes the node of the lowest level that ends with `leaf`; the last one turns into the sum of
  // all.
  MARCORO_DEVICE void Fold(int leaf, WarpSums<S>& sums) const {
    int level = S::kRegisterLevels;
    while ((leaf >> level & 1) != 0) {
      sums.Add(memory_, FirstOfLevel(level));
      ScaleAt(++level, sums);
    }
    if (leaf + 1 < leaves_) sums.Store(memory_, FirstOfLevel(level));
  }

 private:
  MARCORO_DEVICE static int FirstOfLevel(int level) {
    return (level - S::kRegisterLevels) * S::kLevelFloats + ThreadIndex();
  }

  int leaves_;
  int scale_level_;
  SharedArray<float> memory_;
  float factor_[2 * S::kTilesOfWarp];
};

// The sums of all of the block's leaves. `multiply_leaf(sums)` makes them the product of the next
// leaf.
template <typename S, typename MultiplyLeaf>
MARCORO_DEVICE void SumLeaves(const MatmulOperands& operands, const SumsTree<S>& tree,
                              WarpSums<S>& sums, const MultiplyLeaf& multiply_leaf) {
  for (int leaf = 0; leaf < operands.block_leaves; ++leaf) {
    multiply_leaf(sums);
    tree.ScaleAt(0, sums);
    if (S::kRegisterLevels == 1 && operands.block_leaves > 1) {
      const WarpSums<S> left = sums;
      multiply_leaf(sums);
      tree.ScaleAt(0, sums);
      sums.Add(left);
      tree.ScaleAt(1, sums);
      ++leaf;
    }
    tree.Fold(leaf, sums);
  }
}

// A store of a warp fills whole sectors of 32 bytes.
template <typename S>
MARCORO_DEVICE void WriteSums(const MatmulOperands& operands, const WarpSums<S>& sums,
                              int first_row) {
  const int first_token = BlockIndexX() * S::kTokens;
  float* out = operands.out.data + BlockIndexZ() * operands.out.part_stride;
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < WarpSums<S>::kFragments; ++i) {
    MARCORO_UNROLL_LOOP
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + sums.Row(i, j);
      const int token = first_token + sums.Token(i, j);
      if (row < operands.weight.layout.rows && token < operands.x.tokens) {
        out[token * operands.out.stride + row] = sums.c[i][j];
      }
    }
  }
}

}  // namespace marcoro::cuda
