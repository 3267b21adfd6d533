#include "kernels/reference/reference_backend.h"

#include <cstring>
#include <functional>
#include <memory>

#include "kernels/check.h"
#include "kernels/cpu/memory.h"
#include "kernels/op_checks.h"
#include "kernels/reference/kv_layout.h"
#include "kernels/reference/ops.h"

namespace marcoro {
namespace {

class ReferenceBackend final : public Backend {
 public:
  explicit ReferenceBackend(DType activations)
      : activations_(activations == DType::kF32 ? DType::kF32 : DType::kBF16),
        quantizes_(activations == DType::kF8E4M3) {}

  std::string_view name() const override {
    return activations_ == DType::kF32 ? "reference-f32" : "reference";
  }
  DType activation_dtype() const override { return activations_; }
  bool quantizes_activations() const override { return quantizes_; }
  int threads() const override { return 1; }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override { return cpu::AllocateMemory(bytes); }
  size_t AvailableMemory() const override { return cpu::AvailableMemory(); }

  void ParallelFor(int64_t count, const std::function<void(int64_t)>& body) override {
    for (int64_t i = 0; i < count; ++i) body(i);
  }

  size_t WeightBytes(const WeightShape& shape) const override {
    CheckWeightShape(shape);
    return reference::WeightBytes(shape);
  }

  void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                  const void* source) const override {
    CheckPackWeight(weight, first_row, count, source);
    reference::PackWeight(weight, first_row, count, source);
  }

  size_t KvBlockBytes(int32_t kv_heads, int32_t head_dim, KvFormat format) const override {
    MARCORO_CHECK(kv_heads > 0 && head_dim > 0);
    return reference::KvBlockBytes(kv_heads, head_dim, CachedType(format));
  }

  void ZeroKvBlocks(const KvCacheLayer& cache, absl::Span<const int32_t> blocks) override {
    const size_t bytes = KvBlockBytes(cache.kv_heads, cache.head_dim, cache.format);
    for (const int32_t block : blocks) {
      CheckBlock(cache, block);
      std::memset(static_cast<char*>(cache.data) + static_cast<size_t>(block) * bytes, 0, bytes);
    }
  }

  void Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) override {
    CheckEmbed(ids, table, out);
    reference::Embed(ids, table, out);
  }

  void RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out) override {
    CheckRmsNorm(x, weight, epsilon, out, activations_);
    reference::RmsNorm(x, weight, epsilon, out);
  }

  void AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight, float epsilon,
                  const Tensor& out) override {
    CheckAddRmsNorm(residual, delta, weight, epsilon, out, activations_);
    reference::AddRmsNorm(residual, delta, weight, epsilon, out);
  }

  void Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out) override {
    CheckMatmul(x, weight, out, activations_);
    reference::Matmul(x, weight, out);
  }

  void QuantizeActivations(const Tensor& x, const QuantizedActivations& out) override {
    CheckQuantizeActivations(x, out, activations_);
    reference::QuantizeActivations(x, out);
  }

  void MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                         const Tensor& out) override {
    MARCORO_CHECK(quantizes_);
    CheckMultiplyQuantized(x, weight, out);
    reference::MultiplyQuantized(x, weight, out);
  }

  void RopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                      absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                      const Tensor& q) override {
    CheckRopeAndStoreKv(qkv, rope, shape, sequences, cache, q, activations_);
    reference::RopeAndStoreKv(qkv, rope, shape, sequences, cache, CachedType(cache.format), q);
  }

  void Attention(const Tensor& q, const AttentionShape& shape,
                 absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                 const Tensor& out) override {
    CheckAttention(q, shape, sequences, cache, out, activations_);
    reference::Attention(q, shape, sequences, cache, CachedType(cache.format), out);
  }

  void SwiGlu(const Tensor& gate_up, const Tensor& out) override {
    CheckSwiGlu(gate_up, out, activations_);
    reference::SwiGlu(gate_up, out);
  }

  void SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) override {
    CheckSummarizeLogits(logits, out);
    reference::SummarizeLogits(logits, out);
  }

 private:
  DType CachedType(KvFormat format) const {
    return format == KvFormat::kFp8 ? DType::kF8E4M3 : activations_;
  }

  const DType activations_;
  const bool quantizes_;
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend(DType activations) {
  MARCORO_CHECK(activations != DType::kF16);
  return std::make_unique<ReferenceBackend>(activations);
}

}  // namespace marcoro
