#include "worker/weights/loader.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/check.h"
#include "kernels/cpu/memory.h"
#include "worker/weights/load_plan.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/parallel_state.h"
#include "worker/weights/quantize.h"
#include "worker/weights/row_conversion.h"
#include "worker/weights/staging_ring.h"

namespace marcoro {
namespace {

// Elements of a destination that one thread packs at a time.
constexpr int64_t kChunkElements = 512 * 1024;
constexpr int64_t kPackRows = 64;  // Backend::PackWeight's granularity
// Bytes of a stage: a copy that keeps the bus busy for longer than it takes to ask for it, and
// small enough that a weight's chunks are more than the threads. Larger where 64 rows are.
constexpr size_t kStageBytes = 2u << 20;
constexpr size_t kStageAlignment = 64;  // of scales behind codes
constexpr int kStagesPerThread = 2;     // one is read into while the other is packed
constexpr size_t kNamedUnused = 5;
// Of tensors that are asked for before they are read: more than the largest job holds, so that a
// small job before it is not all the time the disk has.
constexpr uint64_t kPrefetchBytes = 512u << 20;

// Buffers of one thread at work.
struct Scratch {
  ConversionBuffers conversion;
  std::vector<float> scales;       // of the rows that are converted
  std::vector<uint64_t> elements;  // converted rows, dense, waiting to be packed or copied
};

// Stored bytes read so far, told to the caller one call at a time.
class ProgressCounter {
 public:
  ProgressCounter(uint64_t total, const std::function<void(uint64_t, uint64_t)>& callback)
      : total_(total), callback_(callback) {}

  void Add(uint64_t bytes) {
    absl::MutexLock lock(&mutex_);
    done_ += bytes;
    if (callback_) callback_(done_, total_);
  }

 private:
  const uint64_t total_;
  const std::function<void(uint64_t, uint64_t)>& callback_;
  absl::Mutex mutex_;
  uint64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Of all the tensors a job reads from, since a merge may have to read them whole.
uint64_t TensorBytes(const LoadJob& job) {
  uint64_t bytes = 0;
  for (const RowRange& range : job.ranges) bytes += range.tensor->bytes;
  return bytes;
}

// Which of n equal parts a rank does first.
int64_t BeginOf(int64_t n, const Shard& shard) { return n * shard.rank / shard.world_size; }

// The type that all of a job's rows are stored as; nothing where they differ or are computed.
std::optional<DType> StoredTypeOf(const TensorSource& source, const LoadJob& job) {
  std::optional<DType> stored;
  for (const RowRange& range : job.ranges) {
    const std::optional<DType> of_range = source.StoredDType(*range.tensor);
    if (!of_range.has_value() || of_range != stored.value_or(*of_range)) return std::nullopt;
    stored = of_range;
  }
  return stored;
}

// Bytes that a row of the job takes in a stage, as it is stored or as the host converts it.
size_t StagedRowBytes(const TensorSource& source, const LoadJob& job) {
  const std::optional<DType> stored = StoredTypeOf(source, job);
  return stored.has_value()
             ? static_cast<size_t>(job.ranges.front().tensor->columns()) * SizeOf(*stored)
             : static_cast<size_t>(job.columns()) * SizeOf(job.dtype()) + sizeof(float);
}

// Stages that have room for 64 rows of every job.
absl::StatusOr<std::unique_ptr<StagingRing>> MakeRing(const TensorSource& source,
                                                      const std::vector<LoadJob>& jobs,
                                                      const Backend& backend) {
  size_t bytes = kStageBytes;
  for (const LoadJob& job : jobs) bytes = std::max(bytes, kPackRows * StagedRowBytes(source, job));
  return StagingRing::Create([&backend](size_t size) { return backend.MakeRowStage(size); },
                             bytes + kStageAlignment, kStagesPerThread * backend.threads());
}

// Fills destinations job by job, each on all threads of the backend.
class ShardLoader {
 public:
  // Without a ring the host converts. Without kept_bytes nothing is discarded.
  ShardLoader(TensorSource& source, const Shard& shard, Backend& backend, StagingRing* ring,
              ProgressCounter& progress, std::optional<uint64_t> kept_bytes)
      : source_(source),
        shard_(shard),
        backend_(backend),
        ring_(ring),
        progress_(progress),
        kept_bytes_(kept_bytes),
        // Ranks begin at different places of a tensor. What several of them read is then brought
        // in by one and found in the page cache by the others; in step, all would wait for the
        // same pages.
        parallel_([&backend, shard](int64_t n, const std::function<void(int64_t)>& work) {
          const int64_t begin = BeginOf(n, shard);
          backend.ParallelFor(n, [&](int64_t i) { work((begin + i) % n); });
        }) {}

  absl::Status Run(const std::vector<LoadJob>& jobs) {
    size_t asked = 0;    // jobs that are prefetched
    uint64_t ahead = 0;  // bytes of these that are not loaded yet
    for (size_t i = 0; i < jobs.size(); ++i) {
      while (asked < jobs.size() && (asked <= i + 1 || ahead < kPrefetchBytes)) {
        Prefetch(jobs[asked]);
        ahead += TensorBytes(jobs[asked]);
        ++asked;
      }
      if (absl::Status status = RunJob(jobs[i]); !status.ok()) return status;
      ahead -= TensorBytes(jobs[i]);
      DiscardBehind(jobs, i + 1);
    }
    return ring_ == nullptr ? absl::OkStatus() : ring_->Finish();
  }

  absl::Status LoadNorm(const std::string& name, std::vector<float>& out) {
    const TensorInfo* tensor = source_.Find(name);
    if (absl::Status status = source_.Prepare(*tensor, parallel_); !status.ok()) return status;
    if (absl::Status status = source_.ReadRows(*tensor, 0, 1, out.data()); !status.ok()) {
      return status;
    }
    if (!AllFinite(out.data(), tensor->columns())) return NotFiniteError(*tensor, 0);
    progress_.Add(tensor->bytes);
    return absl::OkStatus();
  }

 private:
  // From where this rank begins to read.
  void Prefetch(const LoadJob& job) {
    for (const RowRange& range : job.ranges) {
      const int64_t begin = range.rows == range.tensor->rows() ? BeginOf(range.rows, shard_) : 0;
      source_.Prefetch(*range.tensor, range.first_row + begin, range.rows - begin);
      if (begin > 0) source_.Prefetch(*range.tensor, range.first_row, begin);
    }
  }

  // Of `done` jobs the first, as long as those after it are more than stays.
  void DiscardBehind(const std::vector<LoadJob>& jobs, size_t done) {
    if (!kept_bytes_.has_value()) return;
    kept_ += TensorBytes(jobs[done - 1]);
    while (discarded_ < done && kept_ - TensorBytes(jobs[discarded_]) >= *kept_bytes_) {
      for (const RowRange& range : jobs[discarded_].ranges) source_.Discard(*range.tensor);
      kept_ -= TensorBytes(jobs[discarded_]);
      ++discarded_;
    }
  }

  absl::Status RunJob(const LoadJob& job) {
    for (const RowRange& range : job.ranges) {
      if (absl::Status status = source_.Prepare(*range.tensor, parallel_); !status.ok())
        return status;
    }
    const std::optional<DType> stored = StoredTypeOf(source_, job);
    const int64_t chunk_rows = ChunkRows(job, /*is_converted=*/!stored.has_value());
    const int64_t chunks = (job.rows() + chunk_rows - 1) / chunk_rows;
    FirstError error;
    parallel_(chunks, [&](int64_t chunk) {
      if (!error.ok()) return;
      const int64_t first = chunk * chunk_rows;
      const int64_t count = std::min(chunk_rows, job.rows() - first);
      std::unique_ptr<Scratch> scratch = scratch_.Take();
      absl::Status status = ring_ == nullptr ? LoadChunk(job, first, count, *scratch)
                                             : StageChunk(job, stored, first, count, *scratch);
      scratch_.Return(std::move(scratch));
      if (!status.ok()) return error.Set(std::move(status));
      NoteProgress(job, first, count);
    });
    return error.status();
  }

  // Of a chunk of the job: as many as a stage takes, or as a thread should convert at a time.
  int64_t ChunkRows(const LoadJob& job, bool is_converted) const {
    const int64_t converted =
        std::max<int64_t>(1, kChunkElements / (kPackRows * job.columns())) * kPackRows;
    if (ring_ == nullptr) return converted;
    const size_t bytes = ring_->stage_bytes() - kStageAlignment;
    const auto staged =
        static_cast<int64_t>(bytes / (kPackRows * StagedRowBytes(source_, job))) * kPackRows;
    return is_converted ? std::min(converted, staged) : staged;
  }

  void NoteProgress(const LoadJob& job, int64_t first, int64_t count) {
    uint64_t bytes = 0;
    for (const ChunkPart& part : PartsOf(job, first, count)) bytes += part.range.bytes();
    if (bytes > 0) progress_.Add(bytes);
  }

  // Rows [first, first + count) of the destination, dense at `elements`, each with a scale if it is
  // E4M3; zeros where there are none.
  absl::Status ConvertChunk(const LoadJob& job, int64_t first, int64_t count, float* scales,
                            char* elements, ConversionBuffers& buffers) {
    const size_t row_bytes = static_cast<size_t>(job.columns()) * SizeOf(job.dtype());
    int64_t converted = 0;
    for (const ChunkPart& part : PartsOf(job, first, count)) {
      char* out = elements + static_cast<size_t>(part.first_row) * row_bytes;
      absl::Status status =
          ConvertRows(source_, job, part.range, scales + part.first_row, out, buffers);
      if (!status.ok()) return status;
      converted = part.first_row + part.range.rows;
    }
    std::memset(elements + static_cast<size_t>(converted) * row_bytes, 0,
                static_cast<size_t>(count - converted) * row_bytes);
    return absl::OkStatus();
  }

  // The same rows, into the destination, by the host.
  absl::Status LoadChunk(const LoadJob& job, int64_t first, int64_t count, Scratch& scratch) {
    const size_t bytes = static_cast<size_t>(count * job.columns()) * SizeOf(job.dtype());
    const bool in_place = !job.packed() && backend_.host_memory();
    scratch.scales.assign(static_cast<size_t>(count), 0);
    if (!in_place) scratch.elements.resize((bytes + 7) / 8);
    char* elements = in_place ? static_cast<char*>(job.matrix.RowBytes(first))
                              : reinterpret_cast<char*>(scratch.elements.data());
    absl::Status status =
        ConvertChunk(job, first, count, scratch.scales.data(), elements, scratch.conversion);
    if (!status.ok() || in_place) return status;
    if (!job.packed()) return backend_.Upload(elements, job.matrix.RowBytes(first), bytes);
    backend_.PackWeight(job.weight, first, count, elements);
    if (job.weight.scales == nullptr) return absl::OkStatus();
    return backend_.Upload(scratch.scales.data(), job.weight.scales + first,
                           static_cast<size_t>(count) * sizeof(float));
  }

  // The same through a stage: what is done when this returns is reading, the rest is queued.
  absl::Status StageChunk(const LoadJob& job, std::optional<DType> stored, int64_t first,
                          int64_t count, Scratch& scratch) {
    absl::StatusOr<Stage> stage = ring_->Take();
    if (!stage.ok()) return stage.status();
    absl::StatusOr<StagedRows> rows =
        stored.has_value()
            ? ReadChunk(job, *stored, first, count, static_cast<char*>(stage->rows->memory()))
            : ConvertInto(job, first, count, static_cast<char*>(stage->rows->memory()), scratch);
    absl::Status status = rows.status();
    if (status.ok()) {
      stage->explain = [this, &job, first, count] { return ExplainChunk(job, first, count); };
      status = job.packed() ? stage->rows->Pack(*rows, job.weight, first)
                            : stage->rows->Copy(*rows, job.matrix.Rows(first, count));
    }
    ring_->Return(*std::move(stage));
    return status;
  }

  // Rows as they are stored, zeros where there are none.
  absl::StatusOr<StagedRows> ReadChunk(const LoadJob& job, DType dtype, int64_t first,
                                       int64_t count, char* memory) {
    StagedRows rows = {.dtype = dtype, .count = count, .first_column = job.first_column};
    rows.columns = job.ranges.front().tensor->columns();
    const size_t row_bytes = static_cast<size_t>(rows.columns) * SizeOf(dtype);
    int64_t read = 0;
    for (const ChunkPart& part : PartsOf(job, first, count)) {
      char* out = memory + static_cast<size_t>(part.first_row) * row_bytes;
      const RowRange& range = part.range;
      absl::Status status = source_.ReadStored(*range.tensor, range.first_row, range.rows, out);
      if (!status.ok()) return status;
      read = part.first_row + range.rows;
    }
    std::memset(memory + static_cast<size_t>(read) * row_bytes, 0,
                static_cast<size_t>(count - read) * row_bytes);
    return rows;
  }

  // Rows that the host has converted.
  absl::StatusOr<StagedRows> ConvertInto(const LoadJob& job, int64_t first, int64_t count,
                                         char* memory, Scratch& scratch) {
    const size_t bytes = static_cast<size_t>(count * job.columns()) * SizeOf(job.dtype());
    StagedRows rows = {.dtype = job.dtype(), .count = count, .columns = job.columns()};
    scratch.scales.resize(static_cast<size_t>(count));
    float* scales = scratch.scales.data();
    if (job.dtype() == DType::kF8E4M3) {
      scales = reinterpret_cast<float*>(memory + (bytes + kStageAlignment - 1) / kStageAlignment *
                                                     kStageAlignment);
      rows.scales = scales;
    }
    absl::Status status = ConvertChunk(job, first, count, scales, memory, scratch.conversion);
    if (!status.ok()) return status;
    return rows;
  }

  // The backend met a number that is not finite: the host does the chunk once more and names it.
  absl::Status ExplainChunk(const LoadJob& job, int64_t first, int64_t count) {
    Scratch scratch;
    std::vector<char> elements(static_cast<size_t>(count * job.columns()) * SizeOf(job.dtype()));
    scratch.scales.resize(static_cast<size_t>(count));
    absl::Status status =
        ConvertChunk(job, first, count, scratch.scales.data(), elements.data(), scratch.conversion);
    if (!status.ok()) return status;
    const TensorInfo& tensor = *job.ranges.front().tensor;
    return absl::InternalError(
        absl::StrCat(tensor.origin, ": tensor ", tensor.name,
                     ": reached the device with numbers that are not finite, which the file does "
                     "not hold"));
  }

  TensorSource& source_;
  const Shard shard_;
  Backend& backend_;
  StagingRing* const ring_;
  ProgressCounter& progress_;
  const std::optional<uint64_t> kept_bytes_;
  size_t discarded_ = 0;  // jobs
  uint64_t kept_ = 0;     // bytes of the jobs that are done and not discarded
  const ParallelFor parallel_;
  Pool<Scratch> scratch_;
};

void Warn(const std::string& message, const LoadOptions& options) {
  if (options.warn) {
    options.warn(message);
  } else {
    spdlog::warn("{}", message);
  }
}

void WarnOfUnused(const std::vector<std::string>& unused, const LoadOptions& options) {
  if (unused.empty()) return;
  std::string message = absl::StrCat("ignoring ", unused.size(), " tensor",
                                     unused.size() == 1 ? "" : "s", " the model does not use: ");
  for (size_t i = 0; i < std::min(unused.size(), kNamedUnused); ++i) {
    absl::StrAppend(&message, i == 0 ? "" : ", ", unused[i]);
  }
  if (unused.size() > kNamedUnused) absl::StrAppend(&message, ", …");
  Warn(message, options);
}

// What is read first, so that the disk works while memory is made for the shard.
void PrefetchFirst(TensorSource& source, const ModelConfig& config) {
  uint64_t asked = 0;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    const TensorInfo& info = *source.Find(tensor.name);
    source.Prefetch(info, 0, info.rows());
    asked += info.bytes;
    if (asked >= kPrefetchBytes) return;
  }
}

// Of memory that --weights=fp8 does not save.
void WarnOfUnquantized(const ModelParameters& parameters, const LoadOptions& options) {
  if (options.linear_dtype != DType::kF8E4M3) return;
  uint64_t weights = 0;
  uint64_t bytes = 0;
  for (const LayerParameters& layer : parameters.layers) {
    for (const PackedWeight* weight : {&layer.qkv, &layer.o_proj, &layer.gate_up, &layer.down}) {
      if (weight->shape.dtype == DType::kF8E4M3) continue;
      weights += 1;
      bytes += static_cast<uint64_t>(weight->shape.rows * weight->shape.columns);
    }
  }
  if (weights == 0) return;
  Warn(absl::StrCat(weights, " of ", parameters.layers.size() * 4,
                    " linear weights are held in BF16, not FP8, because the checkpoint left them "
                    "unquantized or scales them by blocks: ",
                    (bytes + 999'999) / 1'000'000, " MB more on this rank"),
       options);
}

// Bytes of tensors that stay in the page cache behind the last one loaded; nothing where all can.
// A page cache that gives up what was read last keeps nothing for the next start; and finding a
// page to give up (or a machine's host to take one from) costs more than reading does. Pages that
// are given back behind the reader are those that it reads into next.
std::optional<uint64_t> KeptBytes(const TensorSource& source, const std::vector<LoadJob>& jobs,
                                  const LoadOptions& options) {
  const uint64_t stored = source.StoredBytes();
  const uint64_t available = cpu::AvailableMemory();
  if (stored <= available) return std::nullopt;
  if (options.kept_bytes.has_value()) return options.kept_bytes;
  uint64_t tensors = 0;  // those of a merge are stored once for each parent
  for (const LoadJob& job : jobs) tensors += TensorBytes(job);
  const double share = static_cast<double>(available) / 2 / static_cast<double>(stored);
  return static_cast<uint64_t>(share * static_cast<double>(tensors));
}

// Every norm with the vector it fills.
std::vector<std::pair<std::string, std::vector<float>*>> Norms(ModelParameters& parameters) {
  std::vector<std::pair<std::string, std::vector<float>*>> norms;
  for (size_t i = 0; i < parameters.layers.size(); ++i) {
    LayerParameters& layer = parameters.layers[i];
    const int number = static_cast<int>(i);
    norms.emplace_back(LayerTensorName(number, "input_layernorm"), &layer.attention_norm);
    norms.emplace_back(LayerTensorName(number, "post_attention_layernorm"), &layer.ffn_norm);
  }
  norms.emplace_back(std::string(kFinalNormName), &parameters.final_norm);
  return norms;
}

}  // namespace

absl::StatusOr<ModelParameters> LoadParameters(TensorSource& source, const ModelConfig& config,
                                               const Shard& shard, const LoadOptions& options,
                                               Backend& backend) {
  std::vector<std::string> unused;
  if (absl::Status status = CheckTensors(source, config, &unused); !status.ok()) return status;
  WarnOfUnused(unused, options);
  PrefetchFirst(source, config);
  absl::StatusOr<ModelParameters> parameters = AllocateParameters(
      config, shard, PlanLinearDTypes(source, config, options.linear_dtype), backend);
  if (!parameters.ok()) return parameters;
  WarnOfUnquantized(*parameters, options);
  if (options.allocated) {
    if (absl::Status status = options.allocated(); !status.ok()) return status;
  }

  const std::vector<LoadJob> jobs = PlanJobs(source, config, shard, *parameters);
  const auto norms = Norms(*parameters);
  uint64_t total = 0;
  for (const LoadJob& job : jobs) {
    for (const RowRange& range : job.ranges) total += range.bytes();
  }
  for (const auto& [name, norm] : norms) total += source.Find(name)->bytes;

  auto ring = MakeRing(source, jobs, backend);
  if (!ring.ok()) return ring.status();
  ProgressCounter progress(total, options.progress);
  ShardLoader loader(source, shard, backend, ring->get(), progress,
                     KeptBytes(source, jobs, options));
  for (const auto& [name, norm] : norms) {
    if (absl::Status status = loader.LoadNorm(name, *norm); !status.ok()) return status;
  }
  if (absl::Status status = loader.Run(jobs); !status.ok()) return status;
  if (absl::Status status = backend.Synchronize(); !status.ok()) return status;
  if (absl::Status status = source.CheckUnchanged(); !status.ok()) return status;
  return parameters;
}

}  // namespace marcoro
