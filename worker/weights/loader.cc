#include "worker/weights/loader.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/check.h"
#include "worker/weights/load_plan.h"
#include "worker/weights/model_tensors.h"
#include "worker/weights/parallel_state.h"
#include "worker/weights/quantize.h"

namespace marcoro {
namespace {

// Elements of a destination that one thread packs at a time, and of stored rows that it holds as
// float32. Rows longer than this are still handled whole.
constexpr int64_t kChunkElements = 512 * 1024;
constexpr int64_t kReadElements = 64 * 1024;
constexpr int64_t kPackRows = 64;  // Backend::PackWeight's granularity
constexpr size_t kNamedUnused = 5;
// Of tensors that are asked for before they are read: more than the largest job holds, so that a
// small job before it is not all the time the disk has. The kernel takes as much of each range as
// the device's read-ahead allows, and its own read-ahead goes on from there.
constexpr uint64_t kPrefetchBytes = 512u << 20;

// Buffers of one thread at work.
struct Scratch {
  std::vector<float> rows;         // stored rows as float32
  std::vector<uint8_t> codes;      // or as they are
  std::vector<float> scales;       // of the rows that are converted
  std::vector<uint64_t> elements;  // converted rows, dense, waiting to be packed or copied
};

// Whether a code stands for NaN. No branches, so that it is vectorised.
bool HasNaN(const uint8_t* codes, int64_t count) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) found |= (codes[i] & 0x7f) == 0x7f;
  return found;
}

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

// Fills destinations job by job, each on all threads of the backend.
class ShardLoader {
 public:
  ShardLoader(TensorSource& source, const Shard& shard, Backend& backend, ProgressCounter& progress)
      : source_(source),
        shard_(shard),
        backend_(backend),
        progress_(progress),
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
    }
    return absl::OkStatus();
  }

  absl::Status LoadNorm(const std::string& name, std::vector<float>& out) {
    const TensorInfo* tensor = source_.Find(name);
    if (absl::Status status = source_.Prepare(*tensor, parallel_); !status.ok()) return status;
    if (absl::Status status = source_.ReadRows(*tensor, 0, 1, out.data()); !status.ok()) {
      return status;
    }
    if (!AllFinite(out.data(), tensor->columns())) return NotFinite(*tensor, 0);
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

  absl::Status RunJob(const LoadJob& job) {
    const int64_t chunk_rows =
        std::max<int64_t>(1, kChunkElements / (kPackRows * job.columns())) * kPackRows;
    const int64_t chunks = (job.rows() + chunk_rows - 1) / chunk_rows;
    for (const RowRange& range : job.ranges) {
      if (absl::Status status = source_.Prepare(*range.tensor, parallel_); !status.ok())
        return status;
    }
    FirstError error;
    parallel_(chunks, [&](int64_t chunk) {
      if (!error.ok()) return;
      const int64_t first = chunk * chunk_rows;
      const int64_t count = std::min(chunk_rows, job.rows() - first);
      std::unique_ptr<Scratch> scratch = scratch_.Take();
      absl::Status status = LoadChunk(job, first, count, *scratch);
      scratch_.Return(std::move(scratch));
      if (!status.ok()) error.Set(std::move(status));
    });
    return error.status();
  }

  // Rows [first, first + count) of the destination.
  absl::Status LoadChunk(const LoadJob& job, int64_t first, int64_t count, Scratch& scratch) {
    const size_t row_bytes = static_cast<size_t>(job.columns()) * SizeOf(job.dtype());
    const bool in_place = !job.packed() && backend_.host_memory();
    char* elements = static_cast<char*>(in_place ? job.matrix.RowBytes(first) : nullptr);
    if (!in_place) {
      scratch.elements.assign((static_cast<size_t>(count) * row_bytes + 7) / 8, 0);
      elements = reinterpret_cast<char*>(scratch.elements.data());
    }
    scratch.scales.assign(static_cast<size_t>(count), 0);
    int64_t range_begin = 0;  // the destination row at which the range begins
    for (const RowRange& range : job.ranges) {
      const int64_t begin = std::max(first, range_begin);
      const int64_t end = std::min(first + count, range_begin + range.rows);
      if (begin < end) {
        const RowRange part{range.tensor, range.first_row + begin - range_begin, end - begin};
        char* out = elements + static_cast<size_t>(begin - first) * row_bytes;
        float* scales = scratch.scales.data() + begin - first;
        absl::Status status = LoadRows(job, part, scales, out, scratch);
        if (!status.ok()) return status;
      }
      range_begin += range.rows;
    }
    if (in_place) return absl::OkStatus();
    if (!job.packed()) {
      return backend_.Upload(elements, job.matrix.RowBytes(first),
                             static_cast<size_t>(count) * row_bytes);
    }
    backend_.PackWeight(job.weight, first, count, elements);
    if (job.weight.scales == nullptr) return absl::OkStatus();
    return backend_.Upload(scratch.scales.data(), job.weight.scales + first,
                           static_cast<size_t>(count) * sizeof(float));
  }

  // Converts stored rows into destination rows, dense at `out`, with a scale for each if they have
  // any.
  absl::Status LoadRows(const LoadJob& job, const RowRange& range, float* scales, char* out,
                        Scratch& scratch) {
    if (job.dtype() == DType::kF8E4M3 && source_.FormOf(*range.tensor) == Fp8Form::kStored) {
      return LoadCodes(job, range, scales, reinterpret_cast<uint8_t*>(out), scratch.codes);
    }
    std::vector<float>& buffer = scratch.rows;
    const int64_t stored_columns = range.tensor->columns();
    const int64_t step = std::max<int64_t>(1, kReadElements / stored_columns);
    const size_t row_bytes = static_cast<size_t>(job.columns()) * SizeOf(job.dtype());
    buffer.resize(static_cast<size_t>(step * stored_columns));
    for (int64_t done = 0; done < range.rows; done += step) {
      const int64_t count = std::min(step, range.rows - done);
      const int64_t stored_row = range.first_row + done;
      absl::Status status = source_.ReadRows(*range.tensor, stored_row, count, buffer.data());
      if (!status.ok()) return status;
      for (int64_t i = 0; i < count; ++i) {
        const float* numbers = buffer.data() + i * stored_columns;
        char* out_row = out + static_cast<size_t>(done + i) * row_bytes;
        if (!ConvertRow(job, numbers, stored_columns, scales + done + i, out_row)) {
          return NotFinite(*range.tensor, stored_row + i);
        }
      }
      progress_.Add(RowRange{range.tensor, stored_row, count}.bytes());
    }
    return absl::OkStatus();
  }

  // The same for rows that are stored as codes: they and their scales go on as they are.
  absl::Status LoadCodes(const LoadJob& job, const RowRange& range, float* scales, uint8_t* out,
                         std::vector<uint8_t>& buffer) {
    const int64_t stored_columns = range.tensor->columns();
    const int64_t step = std::max<int64_t>(1, kReadElements / stored_columns);
    buffer.resize(static_cast<size_t>(step * stored_columns));
    for (int64_t done = 0; done < range.rows; done += step) {
      const int64_t count = std::min(step, range.rows - done);
      const int64_t stored_row = range.first_row + done;
      absl::Status status =
          source_.ReadCodes(*range.tensor, stored_row, count, buffer.data(), scales + done);
      if (!status.ok()) return status;
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t* kept = buffer.data() + i * stored_columns + job.first_column;
        if (HasNaN(kept, job.columns())) return NotFinite(*range.tensor, stored_row + i);
        std::memcpy(out + (done + i) * job.columns(), kept, static_cast<size_t>(job.columns()));
      }
      progress_.Add(RowRange{range.tensor, stored_row, count}.bytes());
    }
    return absl::OkStatus();
  }

  // One stored row, whole, into the destination's type and columns. False if a number is not
  // finite.
  bool ConvertRow(const LoadJob& job, const float* numbers, int64_t stored_columns, float* scale,
                  char* out) {
    const float* kept = numbers + job.first_column;
    switch (job.dtype()) {
      case DType::kF8E4M3: {
        if (!RowScale(numbers, stored_columns, scale)) return false;
        QuantizeRow(kept, job.columns(), *scale, reinterpret_cast<uint8_t*>(out));
        return true;
      }
      case DType::kBF16:
        return RoundToBFloat16(kept, job.columns(), reinterpret_cast<BFloat16*>(out));
      default:
        MARCORO_CHECK(job.dtype() == DType::kF32);
        std::memcpy(out, kept, static_cast<size_t>(job.columns()) * sizeof(float));
        return AllFinite(kept, job.columns());
    }
  }

  static absl::Status NotFinite(const TensorInfo& tensor, int64_t row) {
    return absl::InvalidArgumentError(
        absl::StrCat(tensor.origin, ": tensor ", tensor.name, ": row ", row,
                     " holds a number that is not finite (NaN, infinite or too large)"));
  }

  TensorSource& source_;
  const Shard shard_;
  Backend& backend_;
  ProgressCounter& progress_;
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

  const std::vector<LoadJob> jobs = PlanJobs(source, config, shard, *parameters);
  const auto norms = Norms(*parameters);
  uint64_t total = 0;
  for (const LoadJob& job : jobs) {
    for (const RowRange& range : job.ranges) total += range.bytes();
  }
  for (const auto& [name, norm] : norms) total += source.Find(name)->bytes;

  ProgressCounter progress(total, options.progress);
  ShardLoader loader(source, shard, backend, progress);
  for (const auto& [name, norm] : norms) {
    if (absl::Status status = loader.LoadNorm(name, *norm); !status.ok()) return status;
  }
  if (absl::Status status = loader.Run(jobs); !status.ok()) return status;
  if (absl::Status status = backend.Synchronize(); !status.ok()) return status;
  if (absl::Status status = source.CheckUnchanged(); !status.ok()) return status;
  return parameters;
}

}  // namespace marcoro
