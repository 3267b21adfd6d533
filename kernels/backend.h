// The op list: everything the model asks of a machine, with every shape written down.
//
// A backend is one kernel family (reference, avx2, avx512, cuda). Within one family every op
// keeps the numerics contract: an output row depends on its own input row (and its own sequence's
// KV blocks) only, each output element is reduced in one fixed order, and neither depends on how
// many tokens are in the step, how many threads run, or where a prompt was cut into chunks. Shapes
// that only a bug can get wrong are CHECKed.
//
// Tensors, weights, norms and the KV cache lie in the backend's memory; spans (ids, sequences,
// rows, summaries) in the program's own. On a CPU the two are one. A GPU runs ops after the call
// has returned, in the order of the calls: what it computed is seen, and what failed is told, by
// Download and Synchronize.
//
// Letters in shapes: T tokens in the step, H hidden, V vocabulary, K and N matmul inputs and
// outputs, D head_dim, A query heads and C KV heads held by this rank, F feed-forward width held by
// this rank, R logit rows. "act" is the backend's activation type: BF16, or F32 for the reference
// backend in float32 mode.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/tensor.h"

namespace marcoro {

class TokenSampler;
struct TokenSamplerLimits;

// KV cache block: positions [16 b, 16 b + 16) of a sequence live in entry b of its block table.
inline constexpr int kKvBlockTokens = 16;

// Owned memory of a backend, aligned to 64 bytes at least. Movable; freed on destruction.
class Buffer {
 public:
  using Deleter = void (*)(void* data, size_t bytes);

  Buffer() = default;
  Buffer(void* data, size_t bytes, Deleter deleter)
      : data_(data), bytes_(bytes), deleter_(deleter) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      Reset();
      std::swap(data_, other.data_);
      std::swap(bytes_, other.bytes_);
      std::swap(deleter_, other.deleter_);
    }
    return *this;
  }
  ~Buffer() { Reset(); }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void Reset() {
    if (data_ != nullptr) deleter_(data_, bytes_);
    data_ = nullptr;
    bytes_ = 0;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  Deleter deleter_ = nullptr;
};

// Shape of a matmul weight as one rank holds it. The `columns` (K) consist of `segments` equal
// segments; the product is the sum of the segments' products in a balanced binary tree
// ((0+1)+(2+3))+…, each segment's own sum scaled by the row's scale before it enters the tree.
// Column-parallel weights have one segment.
struct WeightShape {
  DType dtype =
      DType::kF8E4M3;   // kF8E4M3 (with a float scale per row), kBF16 or kF32 (reference only)
  int64_t rows = 0;     // N
  int64_t columns = 0;  // K, a multiple of segments
  int segments = 1;     // a power of two
};

// A weight in the layout of the backend that packed it. Does not own its memory.
struct PackedWeight {
  WeightShape shape;
  void* data = nullptr;     // WeightBytes(shape) bytes
  float* scales = nullptr;  // (rows) for kF8E4M3, otherwise null
};

// Inputs of a product whose weights are E4M3, in E4M3 as well (activations = kF8E4M3). Every token
// has a scale for each of the product's segments: its own largest magnitude there / 448, in float32
// (1 where all is zero). Codes are x / scale, divided in float32 and rounded to nearest even. A
// scale of a whole row would need the maximum over all ranks; segments never straddle ranks, so
// that their scales, and with them the bits, are the same for every tensor-parallel degree. A
// segment that holds a NaN or an infinity has the scale NaN and codes of zero.
struct QuantizedActivations {
  Tensor codes;   // (T, K) kF8E4M3
  Tensor scales;  // (T, segments) F32
};

// The KV cache of one layer. The layout inside a block belongs to the backend.
//
// In KvFormat::kFp8 the D elements x of each key and of each value of a KV head are E4M3FN codes
// and one float scale: scale = max|x| / 448 (at least the smallest float; 1 where all are zero),
// code = x / scale rounded to nearest even, at most ±448, both computed in F32 from keys as they
// come out of the rotation and values as they come, neither rounded before. An element counts as
// its code times the scale. Where an x is not finite the scale is NaN and the codes are zeros: a
// code is never NaN. Codes and scales are functions of the D elements alone and lie in the
// position's own block, so whatever moves, shares, drops or shards blocks leaves them alone, and
// NaN stays with its sequence; they are the same bits in every backend.
struct KvCacheLayer {
  void* data = nullptr;  // (blocks, KvBlockBytes(kv_heads, head_dim, format))
  int32_t blocks = 0;
  int32_t kv_heads = 0;  // C
  int32_t head_dim = 0;  // D
  KvFormat format = KvFormat::kActivation;
};

// One sequence's part of a step: rows [first_row, first_row + tokens) of the step's matrices are
// its positions [position, position + tokens).
struct SequenceSpan {
  int32_t first_row = 0;
  int32_t tokens = 0;
  int32_t position = 0;
  const int32_t* blocks = nullptr;  // block table, entries for positions [0, position + tokens)
  int32_t block_count = 0;
};

struct AttentionShape {
  int32_t heads = 0;     // A, a multiple of kv_heads
  int32_t kv_heads = 0;  // C
  int32_t head_dim = 0;  // D, even
  int32_t window = 0;    // a query at p sees positions (p - window, p]; 0: all of [0, p]
};

// What sampling needs of each row of logits, in one pass.
struct LogitSummary {
  int32_t best = 0;        // index of the largest logit, the lower index on ties
  float max = 0;           // that logit
  double log_sum_exp = 0;  // natural log of Σ exp(logit)
  bool has_nan = false;    // then the other fields are unspecified
};

// One step as the ops will be asked for it.
struct StepInput {
  absl::Span<const int32_t> ids;
  absl::Span<const SequenceSpan> sequences;
  absl::Span<const int32_t> logit_rows;
};

// The largest steps of a model's shard.
struct StepLimits {
  int64_t tokens = 0;
  int64_t logit_rows = 0;
  int64_t vocabulary = 0;  // columns of logits
  int32_t context_length = 0;
  AttentionShape attention;
  std::vector<WeightShape> weights;  // every shape that Matmul is asked for
};

class RowStage;  // row_stage.h

// Runs the steps of one model; see Backend::MakeStepRunner.
class StepRunner {
 public:
  // Asks the backend for the ops of a step. Only what the step holds may differ between steps.
  using Body = std::function<absl::Status(const StepInput& step)>;

  virtual ~StepRunner() = default;
  // Runs a step within the limits, which holds what it holds until the next one. What body fails
  // with is passed on; INTERNAL if the device failed, as far as that is known already.
  virtual absl::Status Run(const StepInput& step) = 0;
};

struct BackendOptions {
  // "auto" (the best this processor runs), "avx512" (needs F, BW, VL, VBMI and BF16), "avx2" (needs
  // FMA and F16C), "reference", "cuda" (an NVIDIA GPU of compute capability 8.0 or newer).
  std::string name = "auto";
  // Threads that compute, the calling one included. At least 1.
  int threads = 1;
  // kBF16, kF32 with "reference", or kF8E4M3: as kBF16, but products of E4M3 weights take quantized
  // inputs.
  DType activations = DType::kBF16;
  // With "cuda", which of the GPUs that this process sees. -1: the ranks of a group take them in
  // turn, again from the first one if there are fewer GPUs than ranks.
  int device = -1;
  int rank = 0;
  // With "cuda", whether repeatable steps are captured (MakeStepRunner). No bit depends on it.
  bool cuda_graphs = true;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Kernel family, part of the numerics fingerprint: "reference", "reference-f32", "avx2",
  // "avx512", "cuda-sm_80", "cuda-sm_90a", "cuda-sm_90a-wgmma" (activations = kF8E4M3), ….
  virtual std::string_view name() const = 0;
  // One line for the log: the family, and what else there is to know of the machine.
  virtual std::string Description() const { return std::string(name()); }
  virtual DType activation_dtype() const = 0;
  // Whether E4M3 weights are packed for MultiplyQuantized alone (activations = kF8E4M3), or for
  // Matmul alone.
  virtual bool quantizes_activations() const { return false; }
  virtual int threads() const = 0;

  // Zeroed memory. RESOURCE_EXHAUSTED if there is not enough.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) = 0;
  // Bytes that could still be allocated; SIZE_MAX if that is not known.
  virtual size_t AvailableMemory() const = 0;

  // Whether the backend's memory is the program's own, to be read and written by anybody.
  virtual bool host_memory() const { return true; }
  // Copies to and from the backend's memory, done when the call returns. Upload may be called
  // concurrently with itself and PackWeight. Download comes after the ops that were asked for
  // before; it fails if the device did, and then the copy is worth nothing.
  virtual absl::Status Upload(const void* source, void* memory, size_t bytes);
  virtual absl::Status Download(const void* memory, void* out, size_t bytes);
  // The cudaStream_t that ops are queued on; null where there is none.
  virtual void* stream() const { return nullptr; }
  // Waits for the ops that were asked for before. INTERNAL if one failed: the device is lost.
  virtual absl::Status Synchronize() { return absl::OkStatus(); }

  // Makes room for steps within the limits; ReservedBytes of it in the backend's memory.
  // RESOURCE_EXHAUSTED without it, INVALID_ARGUMENT for a shape that the backend has no kernels
  // for. A GPU makes room in mid-step for what was not announced.
  virtual size_t ReservedBytes(const StepLimits& limits) const { return 0; }
  virtual absl::Status Reserve(const StepLimits& limits) { return absl::OkStatus(); }

  // Until the next call, ids, sequences and rows that ops are given are these very spans, and what
  // they hold stays as it is. Sequences do not overlap.
  virtual void BeginStep(const StepInput& step) {}

  // Where Embed reads the ids of the step that began, in the backend's memory: what is queued
  // before it may change them. Null where it reads those that it is given.
  virtual int32_t* step_ids() { return nullptr; }

  // For steps that are each BeginStep and then `body`. A `repeatable` body does nothing but ask for
  // ops and queue work on stream(), and the same for all steps of equally many tokens of each
  // sequence, ids and logit rows. Then a device may add padding to what body is given, so that
  // few kinds of steps exist, and stop calling it for kinds that it knows how to repeat. Padding is
  // ids behind the step's own (rows of no sequence), and logit rows behind the step's own (any of
  // its rows): what comes out for them means nothing, and no other row nor KV block changes by
  // them. There is room for it where there is room for the limits. The backend outlives the runner.
  virtual std::unique_ptr<StepRunner> MakeStepRunner(const StepLimits& limits, bool repeatable,
                                                     StepRunner::Body body);

  // Runs body(i) for every i in [0, count), on all threads, each i once, in any order; returns when
  // all are done.
  virtual void ParallelFor(int64_t count, const std::function<void(int64_t)>& body) = 0;

  // Bytes that a packed weight of this shape takes (padding included), without its scales.
  virtual size_t WeightBytes(const WeightShape& shape) const = 0;
  // Packs rows [first_row, first_row + count) of weight from row-major elements of
  // weight.shape.dtype, (count, columns) dense. first_row is a multiple of 64; count is too, except
  // for the last rows. Padding is zero. Calls for different rows may run concurrently. Scales are
  // the caller's to fill in.
  virtual void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                          const void* source) const = 0;

  // A stage whose memory has so many bytes, through which weights are filled faster than by
  // PackWeight; null where nothing is faster. RESOURCE_EXHAUSTED without the memory. For any
  // thread.
  virtual absl::StatusOr<std::unique_ptr<RowStage>> MakeRowStage(size_t bytes) const;

  // Bytes of one block of one layer: 16 positions of keys and values.
  virtual size_t KvBlockBytes(int32_t kv_heads, int32_t head_dim, KvFormat format) const = 0;
  // Fills the blocks with zeros.
  virtual void ZeroKvBlocks(const KvCacheLayer& cache, absl::Span<const int32_t> blocks) = 0;

  // out (T, H) F32 = rows `ids` of table (V, H) BF16 or F32.
  virtual void Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) = 0;

  // out (T, H) act = x / sqrt(mean(x²) + epsilon) * weight, computed in F32 and rounded once.
  // x (T, H) F32, weight (H) F32. epsilon > 0.
  virtual void RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out) = 0;

  // residual (T, H) F32 += delta (T, H) F32, then out = RmsNorm(residual).
  virtual void AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight,
                          float epsilon, const Tensor& out) = 0;

  // out (T, N) F32 = x (T, K) act · weightᵀ, reduced as WeightShape says.
  virtual void Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out) = 0;

  // out = x (T, K) act, quantized; K is a multiple of out.scales.columns, the segments.
  virtual void QuantizeActivations(const Tensor& x, const QuantizedActivations& out) = 0;

  // AddRmsNorm, then QuantizeActivations of out; the same bits. In one where a backend can, if
  // quantized has one segment.
  virtual void AddRmsNormAndQuantize(const Tensor& residual, const Tensor& delta,
                                     const float* weight, float epsilon, const Tensor& out,
                                     const QuantizedActivations& quantized);

  // The same as Matmul of E4M3 weights with as many segments as x has: each segment's own sum of
  // products of codes, in F32, is multiplied by the row's scale and then by the token's before it
  // enters the tree.
  virtual void MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                                 const Tensor& out) = 0;

  // qkv (T, (A + 2 C) D) F32 holds q, k and v side by side. Rotates q and k by position (pairs are
  // elements i and i + D/2, the Hugging Face layout; rope (positions, D) F32 holds D/2 cosines,
  // then D/2 sines), writes q (T, A D) act, and k and v into the sequences' KV blocks, rounded or
  // quantized as the cache's format says.
  virtual void RopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                              absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                              const Tensor& q) = 0;

  // out (T, A D) act = softmax(q kᵀ / sqrt(D)) v over each sequence's KV blocks in order, causal
  // within the window. Query head h reads KV head h / (A / C). What lies in a block beyond a
  // query's own position never matters, NaN included.
  virtual void Attention(const Tensor& q, const AttentionShape& shape,
                         absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                         const Tensor& out) = 0;

  // gate_up (T, 2 F) F32 holds gate, then up. out (T, F) act = silu(gate) * up, computed in F32 and
  // rounded once.
  virtual void SwiGlu(const Tensor& gate_up, const Tensor& out) = 0;

  // to (R, columns) = the given rows of from; both of one type.
  virtual void GatherRows(const Tensor& from, absl::Span<const int32_t> rows, const Tensor& to);

  // to = from, which has the same size and type.
  virtual void CopyMatrix(const Tensor& from, const Tensor& to);

  // One summary for each row of logits (R, V) F32; there when the call returns.
  virtual void SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) = 0;

  // A sampler on the backend's side (token_sampler.h), which the backend outlives. Null if it has
  // none, for this vocabulary or at all; RESOURCE_EXHAUSTED without memory.
  virtual absl::StatusOr<std::unique_ptr<TokenSampler>> MakeTokenSampler(
      const TokenSamplerLimits& limits);
};

// INVALID_ARGUMENT for an unknown name or combination, FAILED_PRECONDITION if this machine cannot
// run it (the message names what is missing).
absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const BackendOptions& options);

}  // namespace marcoro
