#include "worker/model/parallel_linear.h"

#include <algorithm>
#include <utility>

#include "absl/types/span.h"
#include "kernels/check.h"

namespace marcoro {

absl::StatusOr<LinearProduct> LinearProduct::Create(Backend& backend, int64_t tokens,
                                                    int64_t columns, int segments) {
  LinearProduct result(backend);
  if (!backend.quantizes_activations()) return result;
  auto codes = backend.Allocate(static_cast<size_t>(tokens * columns));
  if (!codes.ok()) return codes.status();
  result.codes_ = *std::move(codes);
  auto scales = backend.Allocate(static_cast<size_t>(tokens * segments) * sizeof(float));
  if (!scales.ok()) return scales.status();
  result.scales_ = *std::move(scales);
  return result;
}

size_t LinearProduct::Bytes(const Backend& backend, int64_t tokens, int64_t columns, int segments) {
  if (!backend.quantizes_activations()) return 0;
  return static_cast<size_t>(tokens * columns) +
         static_cast<size_t>(tokens * segments) * sizeof(float);
}

bool LinearProduct::Quantizes(const PackedWeight& weight) const {
  return backend_->quantizes_activations() && weight.shape.dtype == DType::kF8E4M3;
}

QuantizedActivations LinearProduct::QuantizedOf(const Tensor& x, int64_t segments) const {
  MARCORO_CHECK(static_cast<size_t>(x.rows * x.columns) <= codes_.bytes());
  MARCORO_CHECK(static_cast<size_t>(x.rows * segments) * sizeof(float) <= scales_.bytes());
  return {.codes = Tensor(codes_.data(), DType::kF8E4M3, x.rows, x.columns),
          .scales = Tensor(scales_.data(), DType::kF32, x.rows, segments)};
}

void LinearProduct::Multiply(const Tensor& x, const PackedWeight& weight, const Tensor& out) const {
  if (!Quantizes(weight)) return backend_->Matmul(x, weight, out);
  const QuantizedActivations quantized = QuantizedOf(x, weight.shape.segments);
  backend_->QuantizeActivations(x, quantized);
  backend_->MultiplyQuantized(quantized, weight, out);
}

void LinearProduct::Prepare(const Tensor& x) const {
  if (backend_->quantizes_activations()) backend_->QuantizeActivations(x, QuantizedOf(x, 1));
}

void LinearProduct::AddRmsNormAndPrepare(const Tensor& residual, const Tensor& delta,
                                         const NormParameters& norm, const Tensor& x) const {
  if (backend_->quantizes_activations()) {
    backend_->AddRmsNormAndQuantize(residual, delta, norm.weight, norm.epsilon, x,
                                    QuantizedOf(x, 1));
  } else {
    backend_->AddRmsNorm(residual, delta, norm.weight, norm.epsilon, x);
  }
}

void LinearProduct::MultiplyPrepared(const Tensor& x, const PackedWeight& weight,
                                     const Tensor& out) const {
  if (!Quantizes(weight)) return backend_->Matmul(x, weight, out);
  MARCORO_CHECK(weight.shape.segments == 1);
  backend_->MultiplyQuantized(QuantizedOf(x, 1), weight, out);
}

void ColumnParallel(const LinearProduct& product, const Tensor& x, const PackedWeight& weight,
                    const Tensor& out) {
  product.MultiplyPrepared(x, weight, out);
}

absl::Status RowParallelAddRmsNorm(const LinearProduct& linear, Communicator& communicator,
                                   const Tensor& x, const PackedWeight& weight,
                                   const Tensor& product, const Tensor& residual,
                                   const NormParameters& norm, const Tensor& normed) {
  MARCORO_CHECK(product.stride == product.columns);
  linear.Multiply(x, weight, product);
  const absl::StatusOr<bool> fused =
      communicator.AllReduceAddRmsNorm(residual, product, norm.weight, norm.epsilon, normed);
  if (!fused.ok()) return fused.status();
  if (*fused) {
    linear.Prepare(normed);
    return absl::OkStatus();
  }
  absl::Status status = communicator.AllReduceTree(
      absl::MakeSpan(product.Row<float>(0), product.rows * product.columns));
  if (!status.ok()) return status;
  linear.AddRmsNormAndPrepare(residual, product, norm, normed);
  return absl::OkStatus();
}

absl::StatusOr<VocabularyParallel> VocabularyParallel::Create(Backend& backend,
                                                              Communicator& communicator,
                                                              int64_t vocabulary_size,
                                                              int64_t shard_rows,
                                                              int64_t max_rows) {
  VocabularyParallel result(backend, communicator, vocabulary_size, shard_rows);
  auto shard = backend.Allocate(max_rows * shard_rows * sizeof(float));
  if (!shard.ok()) return shard.status();
  result.shard_ = *std::move(shard);
  if (communicator.size() == 1 || communicator.rank() != 0) return result;
  auto gathered = backend.Allocate(communicator.size() * max_rows * shard_rows * sizeof(float));
  if (!gathered.ok()) return gathered.status();
  result.gathered_ = *std::move(gathered);
  auto logits = backend.Allocate(max_rows * vocabulary_size * sizeof(float));
  if (!logits.ok()) return logits.status();
  result.logits_ = *std::move(logits);
  return result;
}

absl::Status VocabularyParallel::Apply(const Tensor& x, const PackedWeight& weight) {
  const int64_t rows = x.rows;
  const Tensor shard(shard_.data(), DType::kF32, rows, shard_rows_);
  backend_->Matmul(x, weight, shard);
  if (communicator_->size() == 1) return absl::OkStatus();

  auto* gathered = static_cast<float*>(gathered_.data());
  const int64_t shard_elements = rows * shard_rows_;
  const absl::Status status = communicator_->GatherToRoot(
      absl::MakeConstSpan(shard.Row<float>(0), shard_elements),
      absl::MakeSpan(gathered,
                     communicator_->rank() == 0 ? communicator_->size() * shard_elements : 0));
  if (!status.ok() || communicator_->rank() != 0) return status;

  const Tensor logits = Logits(rows);
  for (int rank = 0; rank < communicator_->size(); ++rank) {
    const int64_t begin = rank * shard_rows_;
    const int64_t count = std::min(shard_rows_, vocabulary_size_ - begin);
    if (count <= 0) break;
    Tensor from(gathered + rank * shard_elements, DType::kF32, rows, count);
    from.stride = shard_rows_;
    Tensor to(logits.Row<float>(0) + begin, DType::kF32, rows, count);
    to.stride = vocabulary_size_;
    backend_->CopyMatrix(from, to);
  }
  return absl::OkStatus();
}

Tensor VocabularyParallel::Logits(int64_t rows) const {
  if (communicator_->rank() != 0) return Tensor();
  // One rank's shard is the whole vocabulary.
  const Buffer& buffer = communicator_->size() == 1 ? shard_ : logits_;
  return Tensor(buffer.data(), DType::kF32, rows, vocabulary_size_);
}

}  // namespace marcoro
