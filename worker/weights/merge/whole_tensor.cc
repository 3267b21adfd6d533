#include "worker/weights/merge/whole_tensor.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "worker/weights/parallel_state.h"

namespace marcoro {
namespace {

// Elements of a piece: what of a few inputs fits a core's second cache. Rows longer than this are
// still taken whole.
constexpr int64_t kPieceElements = 16 * 1024;

// Buffers of one thread: the rows of each input.
struct PieceBuffers {
  std::vector<std::vector<float>> rows;
  std::vector<const float*> inputs;
};

int64_t PieceRows(const MergeInputs& inputs) {
  return std::max<int64_t>(1, kPieceElements / std::max<int64_t>(1, inputs.columns()));
}

absl::Status ReadPiece(const MergeInputs& inputs, std::span<const int32_t> indices, int64_t index,
                       PieceBuffers& buffers, TensorPiece* piece) {
  const int64_t first_row = index * PieceRows(inputs);
  const int64_t rows = std::min(PieceRows(inputs), inputs.rows() - first_row);
  piece->index = index;
  piece->first = first_row * inputs.columns();
  piece->count = rows * inputs.columns();
  buffers.rows.resize(indices.size());
  buffers.inputs.resize(indices.size());
  for (size_t i = 0; i < indices.size(); ++i) {
    buffers.rows[i].resize(static_cast<size_t>(piece->count));
    absl::Status status = inputs.ReadRows(indices[i], first_row, rows, buffers.rows[i].data());
    if (!status.ok()) return status;
    buffers.inputs[i] = buffers.rows[i].data();
  }
  piece->inputs = buffers.inputs;
  return absl::OkStatus();
}

}  // namespace

int64_t CountPieces(const MergeInputs& inputs) {
  return (inputs.rows() + PieceRows(inputs) - 1) / PieceRows(inputs);
}

absl::Status ForEachPiece(const MergeInputs& inputs, std::span<const int32_t> indices,
                          const ParallelFor& parallel,
                          const std::function<void(const TensorPiece& piece)>& visit) {
  Pool<PieceBuffers> pool;
  FirstError error;
  parallel(CountPieces(inputs), [&](int64_t index) {
    if (!error.ok()) return;
    std::unique_ptr<PieceBuffers> buffers = pool.Take();
    TensorPiece piece;
    absl::Status status = ReadPiece(inputs, indices, index, *buffers, &piece);
    if (status.ok()) {
      visit(piece);
    } else {
      error.Set(std::move(status));
    }
    pool.Return(std::move(buffers));
  });
  return error.status();
}

absl::Status VisitPiece(const MergeInputs& inputs, std::span<const int32_t> indices, int64_t piece,
                        const std::function<void(const TensorPiece& piece)>& visit) {
  PieceBuffers buffers;
  TensorPiece contents;
  absl::Status status = ReadPiece(inputs, indices, piece, buffers, &contents);
  if (status.ok()) visit(contents);
  return status;
}

double SumInTree(std::span<const double> numbers) {
  if (numbers.empty()) return 0;
  if (numbers.size() == 1) return numbers[0];
  const size_t half = numbers.size() / 2;
  return SumInTree(numbers.first(half)) + SumInTree(numbers.subspan(half));
}

}  // namespace marcoro
