#include "tests/kernels/cuda/staged_backend.h"

#include <cstdio>
#include <cstdlib>

#include "kernels/cpu/memory.h"
#include "kernels/op_checks.h"

namespace marcoro {
namespace {

void CheckOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

// Bytes of the program's memory and their copy in the inner backend's.
class Copy {
 public:
  Copy(Backend& inner, void* host, size_t bytes) : inner_(inner), host_(host) {
    if (bytes == 0) return;
    auto buffer = inner.Allocate(bytes);
    CheckOk(buffer.status());
    buffer_ = *std::move(buffer);
    CheckOk(inner.Upload(host, buffer_.data(), bytes));
  }
  void* data() const { return buffer_.data(); }
  void TakeBack() const { CheckOk(inner_.Download(buffer_.data(), host_, buffer_.bytes())); }

 private:
  Backend& inner_;
  void* host_;
  Buffer buffer_;
};

// A matrix, up to its last element.
class Matrix {
 public:
  Matrix(Backend& inner, const Tensor& tensor)
      : copy_(inner, tensor.data, Bytes(tensor)), tensor_(tensor) {
    tensor_.data = copy_.data();
  }
  const Tensor& tensor() const { return tensor_; }
  void TakeBack() const { copy_.TakeBack(); }

 private:
  static size_t Bytes(const Tensor& tensor) {
    if (tensor.rows == 0) return 0;
    return static_cast<size_t>((tensor.rows - 1) * tensor.stride + tensor.columns) *
           SizeOf(tensor.dtype);
  }

  Copy copy_;
  Tensor tensor_;
};

class Cache {
 public:
  Cache(Backend& inner, const KvCacheLayer& cache)
      : copy_(inner, cache.data,
              static_cast<size_t>(cache.blocks) *
                  inner.KvBlockBytes(cache.kv_heads, cache.head_dim, cache.format)),
        cache_(cache) {
    cache_.data = copy_.data();
  }
  const KvCacheLayer& layer() const { return cache_; }
  void TakeBack() const { copy_.TakeBack(); }

 private:
  Copy copy_;
  KvCacheLayer cache_;
};

Copy Norm(Backend& inner, const float* weight, int64_t columns) {
  return Copy(inner, const_cast<float*>(weight), static_cast<size_t>(columns) * sizeof(float));
}

}  // namespace

absl::StatusOr<Buffer> StagedBackend::Allocate(size_t bytes) { return cpu::AllocateMemory(bytes); }

void StagedBackend::PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                               const void* source) const {
  const Copy copy(*inner_, weight.data, WeightBytes(weight.shape));
  PackedWeight packed = weight;
  packed.data = copy.data();
  inner_->PackWeight(packed, first_row, count, source);
  copy.TakeBack();
}

void StagedBackend::ZeroKvBlocks(const KvCacheLayer& cache, absl::Span<const int32_t> blocks) {
  const Cache copy(*inner_, cache);
  inner_->ZeroKvBlocks(copy.layer(), blocks);
  copy.TakeBack();
}

void StagedBackend::Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) {
  CheckEmbed(ids, table, out);
  const Matrix inner_table(*inner_, table);
  const Matrix inner_out(*inner_, out);
  inner_->BeginStep({.ids = ids, .sequences = {}, .logit_rows = {}});
  inner_->Embed(ids, inner_table.tensor(), inner_out.tensor());
  inner_out.TakeBack();
}

void StagedBackend::RmsNorm(const Tensor& x, const float* weight, float epsilon,
                            const Tensor& out) {
  const Matrix inner_x(*inner_, x);
  const Matrix inner_out(*inner_, out);
  const Copy norm = Norm(*inner_, weight, x.columns);
  inner_->RmsNorm(inner_x.tensor(), static_cast<const float*>(norm.data()), epsilon,
                  inner_out.tensor());
  inner_x.TakeBack();
  inner_out.TakeBack();
}

void StagedBackend::AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight,
                               float epsilon, const Tensor& out) {
  const Matrix inner_residual(*inner_, residual);
  const Matrix inner_delta(*inner_, delta);
  const Matrix inner_out(*inner_, out);
  const Copy norm = Norm(*inner_, weight, residual.columns);
  inner_->AddRmsNorm(inner_residual.tensor(), inner_delta.tensor(),
                     static_cast<const float*>(norm.data()), epsilon, inner_out.tensor());
  inner_residual.TakeBack();
  inner_delta.TakeBack();
  inner_out.TakeBack();
}

void StagedBackend::AddRmsNormAndQuantize(const Tensor& residual, const Tensor& delta,
                                          const float* weight, float epsilon, const Tensor& out,
                                          const QuantizedActivations& quantized) {
  const Matrix inner_residual(*inner_, residual);
  const Matrix inner_delta(*inner_, delta);
  const Matrix inner_out(*inner_, out);
  const Matrix codes(*inner_, quantized.codes);
  const Matrix scales(*inner_, quantized.scales);
  const Copy norm = Norm(*inner_, weight, residual.columns);
  inner_->AddRmsNormAndQuantize(inner_residual.tensor(), inner_delta.tensor(),
                                static_cast<const float*>(norm.data()), epsilon, inner_out.tensor(),
                                {codes.tensor(), scales.tensor()});
  for (const Matrix* matrix : {&inner_residual, &inner_delta, &inner_out, &codes, &scales}) {
    matrix->TakeBack();
  }
}

void StagedBackend::Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out) {
  const Matrix inner_x(*inner_, x);
  const Matrix inner_out(*inner_, out);
  const Copy data(*inner_, weight.data, WeightBytes(weight.shape));
  const size_t scale_bytes =
      weight.scales == nullptr ? 0 : static_cast<size_t>(weight.shape.rows) * sizeof(float);
  const Copy scales(*inner_, weight.scales, scale_bytes);
  inner_->Matmul(inner_x.tensor(), {weight.shape, data.data(), static_cast<float*>(scales.data())},
                 inner_out.tensor());
  inner_out.TakeBack();
}

void StagedBackend::QuantizeActivations(const Tensor& x, const QuantizedActivations& out) {
  const Matrix inner_x(*inner_, x);
  const Matrix codes(*inner_, out.codes);
  const Matrix scales(*inner_, out.scales);
  inner_->QuantizeActivations(inner_x.tensor(), {codes.tensor(), scales.tensor()});
  codes.TakeBack();
  scales.TakeBack();
}

void StagedBackend::MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                                      const Tensor& out) {
  const Matrix codes(*inner_, x.codes);
  const Matrix token_scales(*inner_, x.scales);
  const Matrix inner_out(*inner_, out);
  const Copy data(*inner_, weight.data, WeightBytes(weight.shape));
  const Copy scales(*inner_, weight.scales, static_cast<size_t>(weight.shape.rows) * sizeof(float));
  inner_->MultiplyQuantized({codes.tensor(), token_scales.tensor()},
                            {weight.shape, data.data(), static_cast<float*>(scales.data())},
                            inner_out.tensor());
  inner_out.TakeBack();
}

void StagedBackend::RopeAndStoreKv(const Tensor& qkv, const Tensor& rope,
                                   const AttentionShape& shape,
                                   absl::Span<const SequenceSpan> sequences,
                                   const KvCacheLayer& cache, const Tensor& q) {
  const Matrix inner_qkv(*inner_, qkv);
  const Matrix inner_rope(*inner_, rope);
  const Matrix inner_q(*inner_, q);
  const Cache inner_cache(*inner_, cache);
  inner_->BeginStep({.ids = {}, .sequences = sequences, .logit_rows = {}});
  inner_->RopeAndStoreKv(inner_qkv.tensor(), inner_rope.tensor(), shape, sequences,
                         inner_cache.layer(), inner_q.tensor());
  inner_cache.TakeBack();
  inner_q.TakeBack();
}

void StagedBackend::Attention(const Tensor& q, const AttentionShape& shape,
                              absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                              const Tensor& out) {
  const Matrix inner_q(*inner_, q);
  const Matrix inner_out(*inner_, out);
  const Cache inner_cache(*inner_, cache);
  inner_->BeginStep({.ids = {}, .sequences = sequences, .logit_rows = {}});
  inner_->Attention(inner_q.tensor(), shape, sequences, inner_cache.layer(), inner_out.tensor());
  inner_out.TakeBack();
}

void StagedBackend::SwiGlu(const Tensor& gate_up, const Tensor& out) {
  const Matrix inner_gate_up(*inner_, gate_up);
  const Matrix inner_out(*inner_, out);
  inner_->SwiGlu(inner_gate_up.tensor(), inner_out.tensor());
  inner_out.TakeBack();
}

void StagedBackend::GatherRows(const Tensor& from, absl::Span<const int32_t> rows,
                               const Tensor& to) {
  const Matrix inner_from(*inner_, from);
  const Matrix inner_to(*inner_, to);
  inner_->BeginStep({.ids = {}, .sequences = {}, .logit_rows = rows});
  inner_->GatherRows(inner_from.tensor(), rows, inner_to.tensor());
  inner_to.TakeBack();
}

void StagedBackend::CopyMatrix(const Tensor& from, const Tensor& to) {
  const Matrix inner_from(*inner_, from);
  const Matrix inner_to(*inner_, to);
  inner_->CopyMatrix(inner_from.tensor(), inner_to.tensor());
  inner_to.TakeBack();
}

void StagedBackend::SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) {
  const Matrix inner_logits(*inner_, logits);
  inner_->SummarizeLogits(inner_logits.tensor(), out);
}

}  // namespace marcoro
