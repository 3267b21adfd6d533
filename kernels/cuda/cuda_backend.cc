#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/check.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cuda/device_identity.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/device_sampler.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/row_stage.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/step_runner.h"
#include "kernels/cuda/step_upload.h"
#include "kernels/op_checks.h"

namespace marcoro::cuda {
namespace {

static_assert(kBlockTokens == kKvBlockTokens);

template <typename T>
bool IsSame(absl::Span<const T> a, absl::Span<const T> b) {
  return a.size() == b.size() && (a.empty() || a.data() == b.data());
}

// Whatever an op does to the device, it does on one stream, in the order of the calls.
class CudaBackend final : public Backend, private StepHost {
 public:
  CudaBackend(int device, DeviceIdentity identity, Stream stream, const CudaBackendOptions& options)
      : device_(device),
        identity_(std::move(identity)),
        stream_(stream),
        graphs_(options.graphs),
        quantized_(options.activations == DType::kF8E4M3),
        pool_(options.threads) {}
  ~CudaBackend() override {
    Synchronize().IgnoreError();  // what it tells is no matter any more
    DestroyStream(stream_);
  }

  std::string_view name() const override {
    return quantized_ ? identity_.quantized_name : identity_.name;
  }
  std::string Description() const override { return identity_.description; }
  DType activation_dtype() const override { return DType::kBF16; }
  bool quantizes_activations() const override { return quantized_; }
  int threads() const override { return pool_.size(); }
  bool host_memory() const override { return false; }
  void* stream() const override { return NativeStream(stream_); }
  void ParallelFor(int64_t count, const std::function<void(int64_t)>& body) override {
    pool_.Run(count, body);
  }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override;
  size_t AvailableMemory() const override;
  absl::Status Upload(const void* source, void* memory, size_t bytes) override;
  absl::Status Download(const void* memory, void* out, size_t bytes) override;
  absl::Status Synchronize() override;
  size_t ReservedBytes(const StepLimits& limits) const override;
  absl::Status Reserve(const StepLimits& limits) override;
  void BeginStep(const StepInput& step) override { BeginStepWithRoom(step, {}); }
  int32_t* step_ids() override { return upload_.ids(); }
  std::unique_ptr<StepRunner> MakeStepRunner(const StepLimits& limits, bool repeatable,
                                             StepRunner::Body body) override;

  size_t WeightBytes(const WeightShape& shape) const override;
  void PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                  const void* source) const override;
  absl::StatusOr<std::unique_ptr<RowStage>> MakeRowStage(size_t bytes) const override {
    return cuda::MakeRowStage(device_, bytes, quantized_ ? DType::kF8E4M3 : DType::kBF16);
  }
  size_t KvBlockBytes(int32_t kv_heads, int32_t head_dim, KvFormat format) const override;
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
  absl::StatusOr<std::unique_ptr<TokenSampler>> MakeTokenSampler(
      const TokenSamplerLimits& limits) override;

 private:
  // What products of these weights take.
  DType ProductActivations(const WeightShape& weight) const {
    return quantized_ && weight.dtype == DType::kF8E4M3 ? DType::kF8E4M3 : DType::kBF16;
  }
  // The most that an op works in: one after the other they use the same memory.
  size_t ScratchBytes(const StepLimits& limits) const;
  // Keeps the first failure of what returns none, for the next call that does.
  void Note(const absl::Status& status) const;
  absl::Status TakeNoted() const;
  void BeginStepWithRoom(const StepInput& step, const StepRoom& room) override;
  StepTies ties() const override;
  absl::Status failure() const override { return TakeNoted(); }
  void CheckSequencesOfStep(absl::Span<const SequenceSpan> sequences, int32_t window,
                            const KvCacheLayer& cache);

  const int device_;
  const DeviceIdentity identity_;
  const Stream stream_;
  const bool graphs_;
  const bool quantized_;
  cpu::ThreadPool pool_;

  // Of the step that runs.
  StepInput input_;
  StepUpload upload_;
  std::weak_ptr<LateIds> late_ids_;  // of the sampler
  // What the step has been checked against; its block tables for a window and the blocks of a
  // cache.
  StepTies checked_;
  GrowingMemory scratch_{MemoryKind::kDevice};
  GrowingMemory summaries_{MemoryKind::kDevice};

  // Loading comes from several threads: one at a time.
  mutable absl::Mutex loading_;
  mutable GrowingMemory packing_ ABSL_GUARDED_BY(loading_){MemoryKind::kDevice};

  mutable absl::Mutex failure_mutex_;
  mutable absl::Status failure_ ABSL_GUARDED_BY(failure_mutex_);
};

void CudaBackend::Note(const absl::Status& status) const {
  absl::MutexLock lock(&failure_mutex_);
  failure_.Update(status);
}

absl::Status CudaBackend::TakeNoted() const {
  absl::MutexLock lock(&failure_mutex_);
  return failure_;
}

absl::StatusOr<Buffer> CudaBackend::Allocate(size_t bytes) {
  if (bytes == 0) return Buffer();
  auto memory = AllocateDevice(bytes);
  if (!memory.ok()) return memory.status();
  return Buffer(*memory, bytes, [](void* data, size_t) { FreeDevice(data); });
}

size_t CudaBackend::AvailableMemory() const {
  const auto properties = Properties();
  return properties.ok() ? properties->free_memory : 0;
}

absl::Status CudaBackend::Upload(const void* source, void* memory, size_t bytes) {
  absl::MutexLock lock(&loading_);
  EnterDevice(device_);
  CopyToDevice(stream_, memory, source, bytes);
  return cuda::Synchronize(stream_);
}

absl::Status CudaBackend::Download(const void* memory, void* out, size_t bytes) {
  CopyToHost(stream_, out, memory, bytes);
  return Synchronize();
}

absl::Status CudaBackend::Synchronize() {
  absl::Status status = cuda::Synchronize(stream_);
  upload_.NoteSynchronized();
  Note(status);
  return TakeNoted();
}

size_t CudaBackend::ScratchBytes(const StepLimits& limits) const {
  size_t bytes =
      std::max(AttentionScratchBytes(limits.attention, limits.tokens, limits.context_length),
               SummarizeLogitsScratchBytes(limits.logit_rows, limits.vocabulary));
  for (const WeightShape& weight : limits.weights) {
    bytes = std::max(bytes, MatmulScratchBytes(weight, limits.tokens, ProductActivations(weight)));
  }
  return bytes;
}

size_t SummaryBytes(int64_t rows) { return static_cast<size_t>(rows) * sizeof(LogitSummary); }

// A sampler is made later: there is room for it too, of which each row is a sequence's.
size_t SamplerBytes(const StepLimits& limits) {
  if (limits.vocabulary > kMostTokensToSample) return 0;
  const auto rows = static_cast<int32_t>(limits.logit_rows);
  return DeviceSampler::Bytes({.slots = rows, .rows = rows, .vocabulary = limits.vocabulary});
}

size_t CudaBackend::ReservedBytes(const StepLimits& limits) const {
  return StepUpload::Bytes(limits) + SummaryBytes(limits.logit_rows) + ScratchBytes(limits) +
         SamplerBytes(limits);
}

absl::Status CudaBackend::Reserve(const StepLimits& limits) {
  if (limits.attention.head_dim > kMostHeadDim) {
    return absl::InvalidArgumentError(
        absl::StrCat("backend 'cuda': heads of ", limits.attention.head_dim,
                     " elements are not supported, only up to ", kMostHeadDim));
  }
  absl::Status status = upload_.Reserve(stream_, limits);
  if (status.ok()) status = summaries_.Reserve(stream_, SummaryBytes(limits.logit_rows));
  if (status.ok()) status = scratch_.Reserve(stream_, ScratchBytes(limits));
  return status;
}

void CudaBackend::BeginStepWithRoom(const StepInput& step, const StepRoom& room) {
  input_ = step;
  checked_ = {};
  Note(upload_.Begin(stream_, step, room));
  if (const auto late_ids = late_ids_.lock()) {
    Note(late_ids->Write(stream_, upload_.ids(), upload_.step().rows));
  }
}

StepTies CudaBackend::ties() const {
  StepTies ties = checked_;
  ties.scratch = scratch_.data();
  ties.upload = upload_.memory();
  return ties;
}

std::unique_ptr<StepRunner> CudaBackend::MakeStepRunner(const StepLimits& limits, bool repeatable,
                                                        StepRunner::Body body) {
  return MakeDeviceStepRunner(*this, stream_,
                              {.limits = limits, .repeatable = repeatable, .graphs = graphs_},
                              std::move(body));
}

// Block tables are the same for all layers: looked at once in a step.
void CudaBackend::CheckSequencesOfStep(absl::Span<const SequenceSpan> sequences, int32_t window,
                                       const KvCacheLayer& cache) {
  MARCORO_CHECK(IsSame(sequences, input_.sequences));
  if (checked_.window == window && checked_.kv_blocks == cache.blocks) return;
  for (const SequenceSpan& sequence : sequences) CheckVisibleBlocks(sequence, window, cache);
  checked_.window = window;
  checked_.kv_blocks = cache.blocks;
}

size_t CudaBackend::WeightBytes(const WeightShape& shape) const {
  CheckWeightShape(shape);
  MARCORO_CHECK(shape.dtype != DType::kF32);
  return cuda::WeightBytes(shape);
}

void CudaBackend::PackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                             const void* source) const {
  CheckPackWeight(weight, first_row, count, source);
  const size_t bytes =
      static_cast<size_t>(count * weight.shape.columns) * SizeOf(weight.shape.dtype);
  absl::MutexLock lock(&loading_);
  EnterDevice(device_);
  absl::Status status = packing_.Reserve(stream_, bytes);
  if (status.ok()) {
    CopyToDevice(stream_, packing_.data(), source, bytes);
    cuda::PackWeight(stream_, weight, first_row, count, packing_.data(),
                     ProductActivations(weight.shape));
    status = cuda::Synchronize(stream_);
  }
  Note(status);
}

size_t CudaBackend::KvBlockBytes(int32_t kv_heads, int32_t head_dim, KvFormat format) const {
  MARCORO_CHECK(kv_heads > 0 && head_dim > 0 && head_dim % 2 == 0);
  return static_cast<size_t>(BlockBytes(kv_heads, head_dim, format));
}

void CudaBackend::ZeroKvBlocks(const KvCacheLayer& cache, absl::Span<const int32_t> blocks) {
  const size_t bytes = KvBlockBytes(cache.kv_heads, cache.head_dim, cache.format);
  for (const int32_t block : blocks) {
    CheckBlock(cache, block);
    Fill(stream_, static_cast<char*>(cache.data) + static_cast<size_t>(block) * bytes, 0, bytes);
  }
}

void CudaBackend::Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) {
  CheckEmbed(ids, table, out);
  MARCORO_CHECK(IsSame(ids, input_.ids));
  checked_.vocabulary = std::min(checked_.vocabulary, table.rows);
  if (out.rows > 0) cuda::Embed(stream_, upload_.step(), table, out);
}

void CudaBackend::RmsNorm(const Tensor& x, const float* weight, float epsilon, const Tensor& out) {
  CheckRmsNorm(x, weight, epsilon, out, DType::kBF16);
  if (x.rows > 0) cuda::RmsNorm(stream_, x, nullptr, weight, epsilon, out);
}

void CudaBackend::AddRmsNorm(const Tensor& residual, const Tensor& delta, const float* weight,
                             float epsilon, const Tensor& out) {
  CheckAddRmsNorm(residual, delta, weight, epsilon, out, DType::kBF16);
  if (residual.rows > 0) cuda::RmsNorm(stream_, residual, &delta, weight, epsilon, out);
}

void CudaBackend::AddRmsNormAndQuantize(const Tensor& residual, const Tensor& delta,
                                        const float* weight, float epsilon, const Tensor& out,
                                        const QuantizedActivations& quantized) {
  CheckAddRmsNorm(residual, delta, weight, epsilon, out, DType::kBF16);
  CheckQuantizeActivations(out, quantized, DType::kBF16);
  if (residual.rows == 0) return;
  const bool whole_rows = quantized.scales.columns == 1;
  cuda::RmsNorm(stream_, residual, &delta, weight, epsilon, out, whole_rows ? &quantized : nullptr);
  if (!whole_rows) cuda::QuantizeActivations(stream_, out, quantized);
}

void CudaBackend::Matmul(const Tensor& x, const PackedWeight& weight, const Tensor& out) {
  CheckMatmul(x, weight, out, DType::kBF16);
  MARCORO_CHECK(weight.shape.dtype != DType::kF32);
  MARCORO_CHECK(ProductActivations(weight.shape) == DType::kBF16);
  if (x.rows == 0) return;
  const absl::Status status = scratch_.Reserve(stream_, MatmulScratchBytes(weight.shape, x.rows));
  if (!status.ok()) return Note(status);
  cuda::Matmul(stream_, x, weight, out, scratch_.data());
}

void CudaBackend::QuantizeActivations(const Tensor& x, const QuantizedActivations& out) {
  CheckQuantizeActivations(x, out, DType::kBF16);
  if (x.rows > 0) cuda::QuantizeActivations(stream_, x, out);
}

void CudaBackend::MultiplyQuantized(const QuantizedActivations& x, const PackedWeight& weight,
                                    const Tensor& out) {
  MARCORO_CHECK(quantized_);
  CheckMultiplyQuantized(x, weight, out);
  if (x.codes.rows == 0) return;
  const absl::Status status =
      scratch_.Reserve(stream_, MatmulScratchBytes(weight.shape, x.codes.rows, DType::kF8E4M3));
  if (!status.ok()) return Note(status);
  cuda::MultiplyQuantized(stream_, x, weight, out, scratch_.data());
}

void CudaBackend::RopeAndStoreKv(const Tensor& qkv, const Tensor& rope, const AttentionShape& shape,
                                 absl::Span<const SequenceSpan> sequences,
                                 const KvCacheLayer& cache, const Tensor& q) {
  CheckRopeAndStoreKv(qkv, rope, shape, sequences, cache, q, DType::kBF16);
  CheckSequencesOfStep(sequences, shape.window, cache);
  checked_.positions = std::min(checked_.positions, rope.rows);
  if (sequences.empty()) return;
  cuda::RopeAndStoreKv(stream_, qkv, rope, shape, upload_.step(), cache, q);
}

void CudaBackend::Attention(const Tensor& q, const AttentionShape& shape,
                            absl::Span<const SequenceSpan> sequences, const KvCacheLayer& cache,
                            const Tensor& out) {
  CheckAttention(q, shape, sequences, cache, out, DType::kBF16);
  CheckSequencesOfStep(sequences, shape.window, cache);
  if (sequences.empty()) return;
  const DeviceStep& step = upload_.step();
  const absl::Status status =
      scratch_.Reserve(stream_, AttentionScratchBytes(shape, q.rows, step.context));
  if (!status.ok()) return Note(status);
  cuda::Attention(stream_, q, shape, step, cache, out, scratch_.data());
}

void CudaBackend::SwiGlu(const Tensor& gate_up, const Tensor& out) {
  CheckSwiGlu(gate_up, out, DType::kBF16);
  if (out.rows > 0) cuda::SwiGlu(stream_, gate_up, out);
}

void CudaBackend::GatherRows(const Tensor& from, absl::Span<const int32_t> rows, const Tensor& to) {
  CheckGatherRows(from, rows, to);
  MARCORO_CHECK(IsSame(rows, input_.logit_rows));
  if (to.rows > 0) cuda::GatherRows(stream_, from, upload_.logit_rows(), to);
}

void CudaBackend::CopyMatrix(const Tensor& from, const Tensor& to) {
  CheckCopyMatrix(from, to);
  const size_t size = SizeOf(to.dtype);
  CopyRowsOnDevice(stream_, to.data, static_cast<size_t>(to.stride) * size, from.data,
                   static_cast<size_t>(from.stride) * size, static_cast<size_t>(to.columns) * size,
                   static_cast<size_t>(to.rows));
}

void CudaBackend::SummarizeLogits(const Tensor& logits, absl::Span<LogitSummary> out) {
  CheckSummarizeLogits(logits, out);
  if (out.empty()) return;
  absl::Status status = summaries_.Reserve(stream_, SummaryBytes(logits.rows));
  if (status.ok()) {
    status = scratch_.Reserve(stream_, SummarizeLogitsScratchBytes(logits.rows, logits.columns));
  }
  if (status.ok()) {
    cuda::SummarizeLogits(stream_, logits, static_cast<LogitSummary*>(summaries_.data()),
                          scratch_.data());
    status = Download(summaries_.data(), out.data(), SummaryBytes(logits.rows));
  }
  Note(status);
}

absl::StatusOr<std::unique_ptr<TokenSampler>> CudaBackend::MakeTokenSampler(
    const TokenSamplerLimits& limits) {
  if (limits.vocabulary > kMostTokensToSample) return nullptr;
  auto sampler = DeviceSampler::Create(stream_, limits, [this] { return TakeNoted(); });
  if (!sampler.ok()) return sampler.status();
  late_ids_ = (*sampler)->late_ids();
  return sampler;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device,
                                                         const CudaBackendOptions& options) {
  MARCORO_CHECK(options.threads >= 1);
  if (absl::Status status = UseDevice(device); !status.ok()) return status;
  auto stream = CreateStream();
  if (!stream.ok()) return stream.status();
  auto identity = Identify(*stream);
  if (!identity.ok()) {
    DestroyStream(*stream);
    return identity.status();
  }
  return std::make_unique<CudaBackend>(device, *std::move(identity), *stream, options);
}

}  // namespace marcoro::cuda
