#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/op_checks.h"

namespace marcoro::cpu {
namespace {

static_assert(kBlockTokens == kKvBlockTokens);

// Elements of simple arithmetic that take about as long as handing a task to another thread.
constexpr int64_t kElementsPerTask = 8192;

struct KernelFamily {
  std::string_view name;
  const Kernels* kernels;
  size_t (*weight_bytes)(const WeightShape& shape);
  void (*pack_weight)(const PackedWeight& weight, int64_t first_row, int64_t count,
                      const void* source);
  void (*matmul)(ThreadPool& pool, const Tensor& x, const PackedWeight& weight, const Tensor& out);
  void (*multiply_quantized)(ThreadPool& pool, const QuantizedActivations& x,
                             const PackedWeight& weight, const Tensor& out);
};

constexpr KernelFamily kAvx2Family = {"avx2",           &avx2::kKernels, avx2::WeightBytes,
                                      avx2::PackWeight, avx2::Matmul,    avx2::MultiplyQuantized};
constexpr KernelFamily kAvx512Family = {
    "avx512",           &avx512::kKernels, avx512::WeightBytes,
    avx512::PackWeight, avx512::Matmul,    avx512::MultiplyQuantized};

// A part of Attention that one thread computes: some tokens of one sequence, and some heads that
// share a KV head.
struct AttentionTask {
  const SequenceSpan* sequence;
  int32_t token;  // of the sequence's tokens in this step
  int32_t tokens;
  int32_t head;
  int32_t heads;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const KernelFamily& family, int threads, DType activations)
      : family_(family),
        kernels_(*family.kernels),
        quantizes_(activations == DType::kF8E4M3),
        pool_(threads) {}

  std::string_view name() const override { return family_.name; }
  DType activation_dtype() const override { return DType::kBF16; }
  bool quantizes_activations() const override { return quantizes_; }
  int threads() const override { return pool_.size(); }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override { return AllocateMemory(bytes); }
  size_t AvailableMemory() const override { return cpu::AvailableMemory(); }

  void ParallelFor(int64_t count, const std::function<void(int64_t)>& body) override {
    pool_.Run(count, body);
  }

  size_t WeightBytes(const WeightShape& shape) const override;
  void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                  const void* source) const override;
  size_t KvBlockBytes(int32_t kv_heads, int32_t head_dim, KvFormat format) const override;
  void ZeroKvBlocks(const KvCacheLayer& cache, absl::Span<const int32_t> blocks) override;
  void Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) override;
  void RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out) override;
  void AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight, float epsilon,
                  const Tensor& out) override;
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
  void SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) override;

 private:
  // Runs body(begin, end) over parts of [0, count): on the calling thread alone if all of it is
  // little work, `cost` being that of one item in elements of simple arithmetic.
  void ForRanges(int64_t count, int64_t cost, absl::FunctionRef<void(int64_t, int64_t)> body);
  void ListAttentionTasks(const AttentionShape& shape, absl::Span<const SequenceSpan> sequences);

  const KernelFamily& family_;
  const Kernels& kernels_;
  const bool quantizes_;
  ThreadPool pool_;
  std::vector<AttentionTask> attention_tasks_;  // of the call that runs; kept for its memory
};

void CpuBackend::ForRanges(int64_t count, int64_t cost,
                           absl::FunctionRef<void(int64_t, int64_t)> body) {
  constexpr int64_t kTasksPerThread = 4;
  const int64_t tasks =
      std::min({count, count * cost / kElementsPerTask, kTasksPerThread * int64_t{pool_.size()}});
  if (pool_.size() == 1 || tasks < 2) {
    if (count > 0) body(0, count);
    return;
  }
  pool_.Run(tasks, [&](int64_t task) { body(task * count / tasks, (task + 1) * count / tasks); });
}

size_t CpuBackend::WeightBytes(const WeightShape& shape) const {
  CheckWeightShape(shape);
  return family_.weight_bytes(shape);
}

void CpuBackend::PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                            const void* source) const {
  CheckPackWeight(weight, first_row, count, source);
  family_.pack_weight(weight, first_row, count, source);
}

void CpuBackend::Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out) {
  CheckMatmul(x, weight, out, DType::kBF16);
  family_.matmul(pool_, x, weight, out);
}

void CpuBackend::QuantizeActivations(const Tensor& x, const QuantizedActivations& out) {
  CheckQuantizeActivations(x, out, DType::kBF16);
  constexpr int64_t kCost = 2;  // two passes
  const int64_t segments = out.scales.columns;
  const int64_t columns = x.columns / segments;
  ForRanges(x.rows * segments, kCost * columns, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / segments;
      const int64_t first = i % segments * columns;
      out.scales.Row<float>(token)[i % segments] = kernels_.quantize(
          x.Row<const BFloat16>(token) + first, columns, out.codes.Row<uint8_t>(token) + first);
    }
  });
}

void CpuBackend::MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                                   const Tensor& out) {
  MARCORO_CHECK(quantizes_);
  CheckMultiplyQuantized(x, weight, out);
  family_.multiply_quantized(pool_, x, weight, out);
}

size_t CpuBackend::KvBlockBytes(int32_t kv_heads, int32_t head_dim, KvFormat format) const {
  MARCORO_CHECK(kv_heads > 0 && head_dim > 0 && head_dim % 2 == 0);
  return static_cast<size_t>(BlockBytes(kv_heads, head_dim, format));
}

void CpuBackend::ZeroKvBlocks(const KvCacheLayer& cache, absl::Span<const int32_t> blocks) {
  const size_t bytes = KvBlockBytes(cache.kv_heads, cache.head_dim, cache.format);
  for (const int32_t block : blocks) {
    CheckBlock(cache, block);
    std::memset(static_cast<char*>(cache.data) + static_cast<size_t>(block) * bytes, 0, bytes);
  }
}

void CpuBackend::Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) {
  CheckEmbed(ids, table, out);
  ForRanges(out.rows, out.columns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (table.dtype == DType::kF32) {
        std::memcpy(out.Row<float>(t), table.Row<float>(ids[t]),
                    static_cast<size_t>(out.columns) * sizeof(float));
      } else {
        kernels_.embed_bf16(table.Row<BFloat16>(ids[t]), out.columns, out.Row<float>(t));
      }
    }
  });
}

void CpuBackend::RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out) {
  CheckRmsNorm(x, weight, epsilon, out, DType::kBF16);
  ForRanges(x.rows, x.columns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.rms_norm(x.Row<float>(t), weight, epsilon, x.columns, out.Row<BFloat16>(t));
    }
  });
}

void CpuBackend::AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight,
                            float epsilon, const Tensor& out) {
  CheckAddRmsNorm(residual, delta, weight, epsilon, out, DType::kBF16);
  ForRanges(residual.rows, residual.columns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.add_rms_norm(residual.Row<float>(t), delta.Row<float>(t), weight, epsilon,
                            residual.columns, out.Row<BFloat16>(t));
    }
  });
}

void CpuBackend::RopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                                absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                                const Tensor& q) {
  CheckRopeAndStoreKv(qkv, rope, shape, sequences, cache, q, DType::kBF16);
  MARCORO_CHECK(shape.head_dim <= kAttentionTileElements);
  char* const data = static_cast<char*>(cache.data);
  const int64_t block_stride = BlockBytes(shape.kv_heads, shape.head_dim, cache.format);
  const auto store_token = [&](const SequenceSpan& sequence, int64_t t) {
    const int32_t position = sequence.position + static_cast<int32_t>(t);
    const int32_t block = sequence.blocks[position / kBlockTokens];
    CheckBlock(cache, block);
    kernels_.rope({.qkv = qkv.Row<float>(sequence.first_row + t),
                   .table = rope.Row<float>(position),
                   .heads = shape.heads,
                   .kv_heads = shape.kv_heads,
                   .head_dim = shape.head_dim,
                   .q = q.Row<BFloat16>(sequence.first_row + t),
                   .block = data + block * block_stride,
                   .slot = position % kBlockTokens,
                   .format = cache.format});
  };
  // Many sequences with a token each, or a few with many: parallel over the longer.
  const int64_t count = static_cast<int64_t>(sequences.size());
  if (count >= 2 * pool_.size()) {
    ForRanges(count, qkv.columns * qkv.rows / count, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        for (int64_t t = 0; t < sequences[s].tokens; ++t) store_token(sequences[s], t);
      }
    });
    return;
  }
  for (const SequenceSpan& sequence : sequences) {
    ForRanges(sequence.tokens, qkv.columns, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) store_token(sequence, t);
    });
  }
}

void CpuBackend::ListAttentionTasks(const AttentionShape& shape,
                                    absl::Span<const SequenceSpan> sequences) {
  const int32_t padded = PaddedHeadDim(shape.head_dim);
  MARCORO_CHECK(padded <= kAttentionTileElements);
  const int32_t group = shape.heads / shape.kv_heads;
  const int32_t tile_heads =
      std::min({group, kAttentionTileHeads, kAttentionTileElements / padded});
  const int32_t tile_tokens =
      std::min(kAttentionTileTokens, kAttentionTileElements / (padded * tile_heads));
  attention_tasks_.clear();
  for (const SequenceSpan& sequence : sequences) {
    // The last tokens see most and take longest: first.
    for (int32_t end = sequence.tokens; end > 0; end -= std::min(end, tile_tokens)) {
      const int32_t tokens = std::min(end, tile_tokens);
      for (int32_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
        for (int32_t h = 0; h < group; h += tile_heads) {
          attention_tasks_.push_back({.sequence = &sequence,
                                      .token = end - tokens,
                                      .tokens = tokens,
                                      .head = kv_head * group + h,
                                      .heads = std::min(tile_heads, group - h)});
        }
      }
    }
  }
}

void CpuBackend::Attention(const Tensor& q, const AttentionShape& shape,
                           absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                           const Tensor& out) {
  CheckAttention(q, shape, sequences, cache, out, DType::kBF16);
  int64_t work = 0;  // elements of keys and values that are multiplied
  for (const SequenceSpan& sequence : sequences) {
    CheckVisibleBlocks(sequence, shape.window, cache);
    work += int64_t{sequence.tokens} * (sequence.position + sequence.tokens) * shape.heads *
            shape.head_dim;
  }
  ListAttentionTasks(shape, sequences);
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const int32_t group = shape.heads / shape.kv_heads;
  const auto attend = [&](int64_t index) {
    const AttentionTask& task = attention_tasks_[static_cast<size_t>(index)];
    const int64_t row = task.sequence->first_row + task.token;
    const int64_t column = int64_t{task.head} * shape.head_dim;
    kernels_.attention({.q = q.Row<BFloat16>(row) + column,
                        .q_stride = q.stride,
                        .out = out.Row<BFloat16>(row) + column,
                        .out_stride = out.stride,
                        .head = static_cast<const char*>(cache.data) +
                                task.head / group * HeadBytes(shape.head_dim, cache.format),
                        .block_stride = BlockBytes(shape.kv_heads, shape.head_dim, cache.format),
                        .blocks = task.sequence->blocks,
                        .tokens = task.tokens,
                        .position = task.sequence->position + task.token,
                        .heads = task.heads,
                        .head_dim = shape.head_dim,
                        .window = shape.window,
                        .scale = scale,
                        .format = cache.format});
  };
  const int64_t tasks = static_cast<int64_t>(attention_tasks_.size());
  constexpr int64_t kMultipliesPerElement = 16;  // about as fast as one element of other ops
  if (pool_.size() == 1 || work < 2 * kMultipliesPerElement * kElementsPerTask) {
    for (int64_t task = 0; task < tasks; ++task) attend(task);
  } else {
    pool_.Run(tasks, attend);
  }
}

void CpuBackend::SwiGlu(const Tensor& gate_up, const Tensor& out) {
  CheckSwiGlu(gate_up, out, DType::kBF16);
  constexpr int64_t kCost = 4;  // an exponential and a division an element
  constexpr int64_t kPart = 2048;
  const int64_t parts = (out.columns + kPart - 1) / kPart;
  ForRanges(out.rows * parts, kCost * std::min(kPart, out.columns),
            [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) {
                const int64_t column = i % parts * kPart;
                const float* gate = gate_up.Row<float>(i / parts) + column;
                kernels_.swiglu(gate, gate + out.columns, std::min(kPart, out.columns - column),
                                out.Row<BFloat16>(i / parts) + column);
              }
            });
}

LogitSummary Finish(const float* logits, const RowSummary& row) {
  if (row.has_nan) return {.has_nan = true};
  const float max = logits[row.best];
  // An infinite maximum means that all are masked, or that one overflowed: there is nothing to add
  // up.
  const double log_sum_exp = std::isinf(max) ? max : max + std::log(row.exp_sum);
  return {.best = row.best, .max = max, .log_sum_exp = log_sum_exp, .has_nan = false};
}

void CpuBackend::SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) {
  CheckSummarizeLogits(logits, out);
  constexpr int64_t kCost = 2;  // two passes
  ForRanges(logits.rows, kCost * logits.columns, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = logits.Row<float>(r);
      out[static_cast<size_t>(r)] = Finish(row, kernels_.summarize(row, logits.columns));
    }
  });
}

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(InstructionSet instruction_set, int threads,
                                        DType activations) {
  MARCORO_CHECK(threads >= 1);
  return std::make_unique<CpuBackend>(
      instruction_set == InstructionSet::kAvx512 ? kAvx512Family : kAvx2Family, threads,
      activations);
}

}  // namespace marcoro::cpu
