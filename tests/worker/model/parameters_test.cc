#include "worker/model/parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>

namespace marcoro {
namespace {

using ::testing::HasSubstr;

// 4 KV heads and a feed-forward width of 24: up to 4 ranks.
ModelConfig Config() {
  ModelConfig config;
  config.hidden_size = 32;
  config.layers = 3;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 6;
  config.ffn_size = 24;
  config.vocabulary_size = 50;
  return config;
}

std::unique_ptr<Backend> MakeBackend(DType activations) {
  BackendOptions options;
  options.name = "reference";
  options.activations = activations;
  return *CreateBackend(options);
}

struct SegmentCase {
  int kv_heads;
  int ffn_size;
  int segments;
};

// The largest power of two up to 8 that divides both.
TEST(ReductionSegments, DivideHeadsAndWidth) {
  for (const SegmentCase& test :
       {SegmentCase{8, 14336, 8}, SegmentCase{8, 384, 8}, SegmentCase{16, 16, 8},
        SegmentCase{2, 176, 2}, SegmentCase{8, 12, 4}, SegmentCase{4, 24, 4}, SegmentCase{12, 8, 4},
        SegmentCase{6, 8, 2}, SegmentCase{3, 8, 1}, SegmentCase{8, 7, 1}, SegmentCase{1, 1, 1}}) {
    ModelConfig config = Config();
    config.kv_heads = test.kv_heads;
    config.ffn_size = test.ffn_size;
    EXPECT_EQ(config.reduction_segments(), test.segments)
        << test.kv_heads << " KV heads, width " << test.ffn_size;
  }
}

TEST(CheckTensorParallel, AllowsPowersOfTwoUpToTheSegments) {
  for (const int degree : {1, 2, 4}) EXPECT_TRUE(CheckTensorParallel(Config(), degree).ok());
  for (const int degree : {-2, -1, 0, 3, 5, 6, 8, 16, 1 << 30}) {
    const absl::Status status = CheckTensorParallel(Config(), degree);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << degree;
    EXPECT_THAT(std::string(status.message()), HasSubstr("possible: 1, 2, 4")) << degree;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(degree)));
  }
}

TEST(LogitShardRows, RoundUp) {
  EXPECT_EQ(LogitShardRows(Config(), 1), 50);
  EXPECT_EQ(LogitShardRows(Config(), 2), 25);
  EXPECT_EQ(LogitShardRows(Config(), 4), 13);
  EXPECT_EQ(LogitShardRows(Config(), 8), 7);
}

void ExpectShape(const PackedWeight& weight, DType dtype, int64_t rows, int64_t columns,
                 int segments) {
  EXPECT_EQ(weight.shape.dtype, dtype);
  EXPECT_EQ(weight.shape.rows, rows);
  EXPECT_EQ(weight.shape.columns, columns);
  EXPECT_EQ(weight.shape.segments, segments);
  EXPECT_NE(weight.data, nullptr);
  EXPECT_EQ(weight.scales != nullptr, dtype == DType::kF8E4M3);
}

TEST(AllocateParameters, CutsShapesByRank) {
  auto backend = MakeBackend(DType::kBF16);
  const auto whole = AllocateParameters(Config(), {0, 1}, DType::kF8E4M3, *backend);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_EQ(whole->layers.size(), 3u);
  const LayerParameters& layer = whole->layers[1];
  ExpectShape(layer.qkv, DType::kF8E4M3, 8 * 6 + 2 * 4 * 6, 32, 1);
  ExpectShape(layer.o_proj, DType::kF8E4M3, 32, 48, 4);
  ExpectShape(layer.gate_up, DType::kF8E4M3, 48, 32, 1);
  ExpectShape(layer.down, DType::kF8E4M3, 32, 24, 4);
  ExpectShape(whole->lm_head, DType::kBF16, 50, 32, 1);

  const auto part = AllocateParameters(Config(), {3, 4}, DType::kBF16, *backend);
  ASSERT_TRUE(part.ok()) << part.status();
  ExpectShape(part->layers[2].qkv, DType::kBF16, 2 * 6 + 2 * 6, 32, 1);
  ExpectShape(part->layers[2].o_proj, DType::kBF16, 32, 12, 1);
  ExpectShape(part->layers[2].gate_up, DType::kBF16, 12, 32, 1);
  ExpectShape(part->layers[2].down, DType::kBF16, 32, 6, 1);
  ExpectShape(part->lm_head, DType::kBF16, 13, 32, 1);
  EXPECT_EQ(part->embedding.rows, 50);
  EXPECT_EQ(part->embedding.columns, 32);
  EXPECT_EQ(part->embedding.dtype, DType::kBF16);
  EXPECT_EQ(part->layers[2].attention_norm.size(), 32u);
  EXPECT_EQ(part->layers[2].ffn_norm.size(), 32u);
  EXPECT_EQ(part->final_norm.size(), 32u);
}

TEST(AllocateParameters, KeepsTablesInTheActivationsType) {
  auto backend = MakeBackend(DType::kF32);
  const auto parameters = AllocateParameters(Config(), {0, 2}, DType::kF8E4M3, *backend);
  ASSERT_TRUE(parameters.ok()) << parameters.status();
  EXPECT_EQ(parameters->embedding.dtype, DType::kF32);
  ExpectShape(parameters->lm_head, DType::kF32, 25, 32, 1);
}

TEST(AllocateParameters, IsZeroed) {
  auto backend = MakeBackend(DType::kBF16);
  const auto parameters = AllocateParameters(Config(), {0, 1}, DType::kF8E4M3, *backend);
  ASSERT_TRUE(parameters.ok()) << parameters.status();
  for (const Buffer& buffer : parameters->storage) {
    const char* begin = static_cast<const char*>(buffer.data());
    EXPECT_TRUE(std::all_of(begin, begin + buffer.bytes(), [](char byte) { return byte == 0; }));
  }
}

TEST(AllocateParameters, RefusesDegreesThatAreNotPossible) {
  auto backend = MakeBackend(DType::kBF16);
  EXPECT_EQ(AllocateParameters(Config(), {0, 8}, DType::kF8E4M3, *backend).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// The best family of this processor has no float32 weights, unless it is the reference.
TEST(AllocateParameters, RefusesFloat32WeightsOutsideTheReference) {
  BackendOptions options;
  auto backend = CreateBackend(options);
  ASSERT_TRUE(backend.ok()) << backend.status();
  const bool reference = (*backend)->name().substr(0, 9) == "reference";
  const auto parameters = AllocateParameters(Config(), {0, 1}, DType::kF32, **backend);
  EXPECT_EQ(parameters.ok(), reference) << parameters.status();
}

// The reference backend on a machine with little memory.
class SmallBackend final : public Backend {
 public:
  explicit SmallBackend(size_t bytes) : left_(bytes), inner_(MakeBackend(DType::kBF16)) {}

  absl::StatusOr<Buffer> Allocate(size_t bytes) override {
    if (bytes > left_) return absl::ResourceExhaustedError("no memory left");
    left_ -= bytes;
    return inner_->Allocate(bytes);
  }

  size_t AvailableMemory() const override { return left_; }
  std::string_view name() const override { return inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  int threads() const override { return 1; }
  void ParallelFor(int64_t count, const std::function<void(int64_t)>& body) override {
    inner_->ParallelFor(count, body);
  }
  size_t WeightBytes(const WeightShape& shape) const override { return inner_->WeightBytes(shape); }
  void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                  const void* source) const override {
    inner_->PackWeight(weight, first_row, count, source);
  }
  size_t KvBlockBytes(int32_t heads, int32_t dim, KvFormat format) const override {
    return inner_->KvBlockBytes(heads, dim, format);
  }
  void ZeroKvBlocks(const KvCacheLayer& cache, absl::Span<const int32_t> blocks) override {
    inner_->ZeroKvBlocks(cache, blocks);
  }
  void Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) override {
    inner_->Embed(ids, table, out);
  }
  void RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out) override {
    inner_->RmsNorm(x, weight, epsilon, out);
  }
  void AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight, float epsilon,
                  const Tensor& out) override {
    inner_->AddRmsNorm(residual, delta, weight, epsilon, out);
  }
  void Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out) override {
    inner_->Matmul(x, weight, out);
  }
  void QuantizeActivations(const Tensor& x, const QuantizedActivations& out) override {
    inner_->QuantizeActivations(x, out);
  }
  void MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                         const Tensor& out) override {
    inner_->MultiplyQuantized(x, weight, out);
  }
  void RopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                      absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                      const Tensor& q) override {
    inner_->RopeAndStoreKv(qkv, rope, shape, sequences, cache, q);
  }
  void Attention(const Tensor& q, const AttentionShape& shape,
                 absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                 const Tensor& out) override {
    inner_->Attention(q, shape, sequences, cache, out);
  }
  void SwiGlu(const Tensor& gate_up, const Tensor& out) override { inner_->SwiGlu(gate_up, out); }
  void SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) override {
    inner_->SummarizeLogits(logits, out);
  }

 private:
  size_t left_;
  std::unique_ptr<Backend> inner_;
};

TEST(AllocateParameters, TooLittleMemoryIsResourceExhausted) {
  SmallBackend enough(1 << 20);
  EXPECT_TRUE(AllocateParameters(Config(), {0, 1}, DType::kF8E4M3, enough).ok());
  SmallBackend little(10'000);
  const absl::Status status = AllocateParameters(Config(), {0, 1}, DType::kF8E4M3, little).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("GiB free: missing 0.0"))
      << "known before anything is allocated";
}

}  // namespace
}  // namespace marcoro
