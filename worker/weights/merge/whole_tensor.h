// Passes over a whole tensor, on all threads, in pieces whose cut depends on the tensor's shape
// alone: what is summed by piece, and over pieces by SumInTree, has the same bits however many
// threads there are.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "worker/weights/merge/merge_method.h"

namespace marcoro {

struct TensorPiece {
  int64_t index = 0;  // among the pieces
  int64_t first = 0;  // its first element, in row-major order
  int64_t count = 0;
  std::span<const float* const> inputs;  // (count) each, in the order asked for
};

int64_t CountPieces(const MergeInputs& inputs);

// Reads the inputs of these indices and calls visit for every piece, concurrently. Errors of
// ReadRows.
absl::Status ForEachPiece(const MergeInputs& inputs, std::span<const int32_t> indices,
                          const ParallelFor& parallel,
                          const std::function<void(const TensorPiece& piece)>& visit);

// The same for one piece, on the caller's thread.
absl::Status VisitPiece(const MergeInputs& inputs, std::span<const int32_t> indices, int64_t piece,
                        const std::function<void(const TensorPiece& piece)>& visit);

// The sum of the numbers in a balanced binary tree: halves, and halves of them. 0 for none.
double SumInTree(std::span<const double> numbers);

}  // namespace marcoro
