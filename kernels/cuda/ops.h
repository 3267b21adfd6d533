// The kernels of the CUDA backend, one launcher for each op. They take device memory only and
// return when the launch is queued; shapes have been checked (cuda_backend.cc). Letters as in
// kernels/backend.h. Every row of an op's output depends on that row's inputs only, bit for bit,
// whatever T is.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/launch.h"
#include "kernels/tensor.h"

namespace marcoro::cuda {

// The sequences of a step, in device memory. A step may have padding rows behind those of its
// sequences, so that few shapes of steps exist; they belong to no sequence.
struct DeviceStep {
  int rows = 0;       // T, padding included
  int sequences = 0;  // padding included: those have no tokens
  // Of each row: its token, its position, its sequence. Padding: 0, -1, 0.
  const int32_t* ids = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* row_sequences = nullptr;
  // Of each sequence, as in SequenceSpan, and where its block table begins in `blocks`.
  const int32_t* first_rows = nullptr;
  const int32_t* tokens = nullptr;
  const int32_t* first_positions = nullptr;
  const int32_t* first_blocks = nullptr;
  const int32_t* blocks = nullptr;
  // Bounds that launches are sized by: no sequence has more tokens in this step, and none of them
  // a position at or beyond the context.
  int most_tokens = 0;
  int context = 0;
  // ArrivalCounters() of them, all 0. A kernel that counts with them makes them 0 again; and they
  // are 0 at the beginning of each step, whatever became of the one before.
  uint32_t* arrivals = nullptr;
};

// By which the blocks of a kernel find out which of them is the last to be done with something.
int ArrivalCounters();

// *architecture, in device memory, becomes what the kernels were compiled for: 800 is sm_80, 0 the
// emulator.
void Architecture(Stream stream, int* architecture);

// out (T, H) F32 = rows step.ids of table (V, H) BF16 or F32. A padding row becomes row 0's.
void Embed(Stream stream, const DeviceStep& step, const Tensor& table, const Tensor& out);

// out (T, H) BF16 = x / sqrt(mean(x²) + epsilon) * weight. x (T, H) F32, weight (H) F32. With a
// delta (T, H) F32, x becomes x + delta first. With `quantized`, in one segment, also
// QuantizeActivations of out.
void RmsNorm(Stream stream, const Tensor& x, const Tensor* delta, const float* weight,
             float epsilon, const Tensor& out, const QuantizedActivations* quantized = nullptr);

// Bytes of a packed weight; packing from `source` (count, columns) in device memory, rows
// [first_row, first_row + count), as Backend::PackWeight. E4M3 weights are packed for activations
// of one type: kBF16 (Matmul) or kF8E4M3 (MultiplyQuantized).
size_t WeightBytes(const WeightShape& shape);
void PackWeight(Stream stream, const PackedWeight& weight, int64_t first_row, int64_t count,
                const void* source, DType activations = DType::kBF16);

// Rows (count, columns) of numbers on their way into a weight or a table, in device memory, and
// which of their columns are kept.
struct NumberRows {
  const void* data = nullptr;
  DType dtype = DType::kBF16;  // kBF16, kF16 or kF32
  int count = 0;
  int columns = 0;
  int first_column = 0;
  int kept_columns = 0;
};
// codes (count, kept_columns) and scales (count), as RowStage::Pack has it. *not_finite, which may
// lie in pinned memory of the host, becomes 1 where a row holds a number that is not finite, and is
// left alone otherwise; codes and scale of that row are unspecified.
void QuantizeRows(Stream stream, const NumberRows& rows, uint8_t* codes, float* scales,
                  uint32_t* not_finite);
// out (count, kept_columns) BF16, numbers rounded to nearest even. *not_finite as above, also where
// a number is not finite after rounding; of the columns that are kept only.
void RoundRows(Stream stream, const NumberRows& rows, const Tensor& out, uint32_t* not_finite);

// out (T, N) F32 = x (T, K) BF16 · weightᵀ as WeightShape says. `scratch` has MatmulScratchBytes of
// the most tokens and the largest weight.
size_t MatmulScratchBytes(const WeightShape& shape, int64_t tokens,
                          DType activations = DType::kBF16);
void Matmul(Stream stream, const Tensor& x, const PackedWeight& weight, const Tensor& out,
            void* scratch);

// As Backend::QuantizeActivations and Backend::MultiplyQuantized. x is BF16.
void QuantizeActivations(Stream stream, const Tensor& x, const QuantizedActivations& out);
void MultiplyQuantized(Stream stream, const QuantizedActivations& x, const PackedWeight& weight,
                       const Tensor& out, void* scratch);

// As Backend::RopeAndStoreKv; padding rows are left alone. Layout of the cache: kv_layout.h.
void RopeAndStoreKv(Stream stream, const Tensor& qkv, const Tensor& rope,
                    const AttentionShape& shape, const DeviceStep& step, const KvCacheLayer& cache,
                    const Tensor& q);

// The largest head dimension that the kernels take.
inline constexpr int kMostHeadDim = 256;

// As Backend::Attention; padding rows become 0. `scratch` has AttentionScratchBytes. Where kernels
// overlap, keys and values before a sequence's first position are read while the kernel ahead runs:
// earlier steps wrote them, and the copy that brought the step came between.
size_t AttentionScratchBytes(const AttentionShape& shape, int64_t rows, int64_t context);
void Attention(Stream stream, const Tensor& q, const AttentionShape& shape, const DeviceStep& step,
               const KvCacheLayer& cache, const Tensor& out, void* scratch);

// As Backend::SwiGlu.
void SwiGlu(Stream stream, const Tensor& gate_up, const Tensor& out);

// to (R, columns) = the given rows of from; both of one 2-byte type, indices in device memory.
void GatherRows(Stream stream, const Tensor& from, const int32_t* rows, const Tensor& to);

// One summary for each row of logits (R, V) F32; out in device memory. With `scratch`, of
// SummarizeLogitsScratchBytes of the most rows, several multiprocessors share a row; the bits are
// the same.
size_t SummarizeLogitsScratchBytes(int64_t rows, int64_t columns);
void SummarizeLogits(Stream stream, const Tensor& logits, LogitSummary* out,
                     void* scratch = nullptr);

}  // namespace marcoro::cuda
