// A backend of the program's own memory over one whose memory is elsewhere.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace marcoro {

// Every op copies what it is given to the inner backend, is run there, and copies back what it may
// have written: whole matrices, with what lies between their rows. Slow, for tests. A failure of
// the inner backend ends the program.
class StagedBackend final : public Backend {
 public:
  explicit StagedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string_view name() const override { return inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  bool quantizes_activations() const override { return inner_->quantizes_activations(); }
  int threads() const override { return inner_->threads(); }
  void ParallelFor(int64_t count, const std::function<void(int64_t)>& body) override {
    inner_->ParallelFor(count, body);
  }
  absl::StatusOr<Buffer> Allocate(size_t bytes) override;
  size_t AvailableMemory() const override { return inner_->AvailableMemory(); }
  size_t ReservedBytes(const StepLimits& limits) const override {
    return inner_->ReservedBytes(limits);
  }
  absl::Status Reserve(const StepLimits& limits) override { return inner_->Reserve(limits); }

  size_t WeightBytes(const WeightShape& shape) const override { return inner_->WeightBytes(shape); }
  void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                  const void* source) const override;
  size_t KvBlockBytes(int32_t kv_heads, int32_t head_dim, KvFormat format) const override {
    return inner_->KvBlockBytes(kv_heads, head_dim, format);
  }
  void ZeroKvBlocks(const KvCacheLayer& cache, absl::Span<const int32_t> blocks) override;
  void Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) override;
  void RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out) override;
  void AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight, float epsilon,
                  const Tensor& out) override;
  void AddRmsNormAndQuantize(const Tensor& residual, const Tensor& delta, const float* weight,
                             float epsilon, const Tensor& out,
                             const QuantizedActivations& quantized) override;
  void Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out) override;
  void QuantizeActivations(const Tensor& x, const QuantizedActivations& out) override;
  void MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                         const Tensor& out) override;
  void RopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                      absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                      const Tensor& q) override;
  void Attention(const Tensor& q, const AttentionShape& shape,
                 absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                 const Tensor& out) override;
  void SwiGlu(const Tensor& gate_up, const Tensor& out) override;
  void GatherRows(const Tensor& from, absl::Span<const int32_t> rows, const Tensor& to) override;
  void CopyMatrix(const Tensor& from, const Tensor& to) override;
  void SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) override;

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace marcoro
