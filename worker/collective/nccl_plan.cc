#include "worker/collective/nccl_plan.h"

#include <algorithm>

namespace marcoro {
namespace {

// What a GPU's links carry in about the time that a further round takes.
constexpr size_t kRoundBytes = size_t{1} << 20;
// What each rank may send for a sum by the one-shot kernels.
constexpr size_t kOneShotBytes = size_t{2} << 20;
// Slices begin at lines of 128 bytes.
constexpr size_t kSliceAlignment = 32;

// A rank sends (ranks - 1) messages if whole, 2 (ranks - 1) / ranks if by slices.
bool IsBetterWhole(size_t count, size_t ranks) {
  const size_t more_bytes = (ranks - 1) * (ranks - 2) * count * sizeof(float) / ranks;
  return more_bytes <= kRoundBytes && ranks * count <= kReduceScratchElements;
}

}  // namespace

std::vector<ReducePiece> PlanReduce(size_t count, int ranks) {
  const auto group = static_cast<size_t>(ranks);
  std::vector<ReducePiece> pieces;
  for (size_t begin = 0; begin < count;) {
    const size_t left = count - begin;
    ReducePiece piece = {.begin = begin, .count = left, .slices = !IsBetterWhole(left, group)};
    if (piece.slices) {
      const size_t unit = group * kSliceAlignment;
      piece.count = std::min(left, kReduceScratchElements) / unit * unit;
    }
    pieces.push_back(piece);
    begin += piece.count;
  }
  return pieces;
}

bool IsOneShotSize(size_t count, int ranks) {
  return static_cast<size_t>(ranks - 1) * count * sizeof(float) <= kOneShotBytes;
}

int SlotElements(int hidden_size) {
  // Shorter ones cost more exchanges, longer ones memory; the fused kernel takes rows up to 8192.
  constexpr int kLeast = 4096;
  constexpr int kMostFused = 8192;
  if (hidden_size > kMostFused) return kLeast;
  return std::max(kLeast, (hidden_size + 3) / 4 * 4);
}

}  // namespace marcoro
