// How a message between GPUs is carried: which way, and in which pieces. No result depends on it,
// since every way adds in tree order.
#pragma once

#include <cstddef>
#include <vector>

namespace marcoro {

// A part of a message that NCCL carries. Either every rank receives all ranks' parts whole and adds
// them, in one round; or rank r adds the r-th of `ranks` equal slices, and the sums are gathered,
// in two rounds that move less.
struct ReducePiece {
  size_t begin = 0;  // elements
  size_t count = 0;
  bool slices = false;  // then count is a multiple of the number of ranks
};

// Elements (float) that a rank receives into for any piece.
inline constexpr size_t kReduceScratchElements = size_t{4} << 20;

// Pieces of a message of `count` elements, in order, without gaps. ranks is 2, 4 or 8.
std::vector<ReducePiece> PlanReduce(size_t count, int ranks);

// Whether a sum of that many elements takes the one-shot kernels (kernels/cuda/all_reduce.h) where
// NCCL could carry it too.
bool IsOneShotSize(size_t count, int ranks);

// Elements that a block of those kernels passes on at once, for a model of this hidden size: a
// whole row if its sum can be fused with the norm.
int SlotElements(int hidden_size);

}  // namespace marcoro
