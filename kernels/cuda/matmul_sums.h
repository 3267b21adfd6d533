// A warp's sums in the kernels for many tokens: as products leave them, on their way up the tree,
// and out.
//
// S, what follows from a kernel's sizes:
//   kTilesOfWarp     tiles of 16 rows that a warp has
//   kTileJump        rows from one of them to the next
//   kTokenTiles      tiles of 8 tokens that a block has; kTokens, tokens
//   kQuantized       whether activations are E4M3
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
  // Each by its token's scale, of which the block's lie from `first` on.
  MARCORO_DEVICE void ScaleTokens(const SharedArray<float>& memory, int first) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < kFragments; ++i) {
      MARCORO_UNROLL_LOOP
      for (int j = 0; j < 4; ++j) c[i][j] = Multiply(c[i][j], memory.Load(first + Token(i, j)));
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
// Tokens' scales lie behind them.
template <typename S>
class SumsTree {
 public:
  MARCORO_DEVICE SumsTree(const MatmulOperands& operands, int first_row, int memory_offset)
      : weight_(operands.weight),
        first_row_(first_row),
        leaves_(operands.block_leaves),
        scale_level_(operands.weight.layout.scale_level),
        memory_(memory_offset, FirstTokenScale() + (S::kQuantized ? leaves_ * S::kTokens : 0)) {
    if constexpr (S::kQuantized) StoreTokenScales(operands.x);
    if constexpr (!kReadsFactors) LoadFactors(factor_);
  }

  // For sums that have become the node of the given level that ends with `leaf`.
  MARCORO_DEVICE void ScaleAt(int level, int leaf, WarpSums<S>& sums) const {
    if (level != scale_level_) return;
    if constexpr (kReadsFactors) {
      float factor[2 * S::kTilesOfWarp];
      LoadFactors(factor);
      sums.Scale(factor);
    } else {
      sums.Scale(factor_);
    }
    if constexpr (S::kQuantized) {
      sums.ScaleTokens(memory_, FirstTokenScale() + (leaf >> scale_level_) * S::kTokens);
    }
  }
  // Takes the node of the lowest level that ends with `leaf`; the last one turns into the sum of
  // all.
  MARCORO_DEVICE void Fold(int leaf, WarpSums<S>& sums) const {
    int level = S::kRegisterLevels;
    while ((leaf >> level & 1) != 0) {
      sums.Add(memory_, FirstOfLevel(level));
      ScaleAt(++level, leaf, sums);
    }
    if (leaf + 1 < leaves_) sums.Store(memory_, FirstOfLevel(level));
  }

 private:
  // Whether rows' factors are read for each segment: two kinds of sums and a level of the tree
  // leave no registers for them.
  static constexpr bool kReadsFactors = S::kQuantized && S::kRegisterLevels > 0;

  MARCORO_DEVICE void LoadFactors(float (&factor)[2 * S::kTilesOfWarp]) const {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 2 * S::kTilesOfWarp; ++i) {
      RawFactor raw;
      raw.Load(weight_, first_row_ + i / 2 * S::kTileJump + i % 2 * 8 + Lane() / 4);
      factor[i] = raw.Value();
    }
  }
  // [segment of the block][token], behind the levels.
  MARCORO_DEVICE int FirstTokenScale() const { return S::SharedLevels(leaves_) * S::kLevelFloats; }
  // There for all after the block's next barrier.
  MARCORO_DEVICE void StoreTokenScales(const ActivationView& x) const {
    const int first_segment = BlockIndexZ() * leaves_ >> scale_level_;
    for (int i = ThreadIndex(); i < (leaves_ >> scale_level_) * S::kTokens; i += BlockThreads()) {
      const int64_t token = BlockIndexX() * S::kTokens + i % S::kTokens;
      const float* scales = x.scales + token * x.scale_stride + first_segment;
      memory_.Store(FirstTokenScale() + i, token < x.tokens ? scales[i / S::kTokens] : 0.0f);
    }
  }
  MARCORO_DEVICE static int FirstOfLevel(int level) {
    return (level - S::kRegisterLevels) * S::kLevelFloats + ThreadIndex();
  }

  const WeightView& weight_;
  int first_row_;
  int leaves_;
  int scale_level_;
  SharedArray<float> memory_;
  // Of the rows.
  float factor_[2 * S::kTilesOfWarp];
};

// The sums of all of the block's leaves. `multiply_leaf(sums)` makes them the product of the next
// leaf.
template <typename S, typename MultiplyLeaf>
MARCORO_DEVICE void SumLeaves(const MatmulOperands& operands, const SumsTree<S>& tree,
                              WarpSums<S>& sums, const MultiplyLeaf& multiply_leaf) {
  for (int leaf = 0; leaf < operands.block_leaves; ++leaf) {
    multiply_leaf(sums);
    tree.ScaleAt(0, leaf, sums);
    if (S::kRegisterLevels == 1 && operands.block_leaves > 1) {
      const WarpSums<S> left = sums;
      multiply_leaf(sums);
      ++leaf;
      tree.ScaleAt(0, leaf, sums);
      sums.Add(left);
      tree.ScaleAt(1, leaf, sums);
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
