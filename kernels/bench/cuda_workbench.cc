#include "kernels/bench/cuda_workbench.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling.h"

namespace marcoro::cuda {
namespace {

constexpr size_t kPatternBytes = size_t{32} << 20;
constexpr int32_t kMostRotations = 16;
constexpr int32_t kMostSampledRows = 32;
// Of all ranks together no more blocks than run at a time, since they wait for each other.
constexpr int64_t kMostSummedRows = 8;

absl::StatusOr<Buffer> AllocateBuffer(size_t bytes) {
  auto memory = AllocateDevice(bytes);
  if (!memory.ok()) return memory.status();
  return Buffer(*memory, bytes, [](void* data, size_t) { FreeDevice(data); });
}

// With the second highest bit of every byte clear, an E4M3 code and a BF16 are smaller than 2, an
// F32 smaller than 4.
std::vector<uint64_t> SmallNumbers(size_t bytes) {
  std::mt19937_64 random(1);
  std::vector<uint64_t> words(bytes / sizeof(uint64_t));
  for (uint64_t& word : words) word = random() & 0xbfbfbfbfbfbfbfbf;
  return words;
}

int32_t BlocksOf(int32_t positions) { return (positions + kKvBlockTokens - 1) / kKvBlockTokens; }

}  // namespace

CudaWorkbench::CudaWorkbench(Stream stream, CudaWorkbenchOptions options)
    : stream_(stream), options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<CudaWorkbench>> CudaWorkbench::Create(Stream stream,
                                                                     CudaWorkbenchOptions options) {
  std::unique_ptr<CudaWorkbench> bench(new CudaWorkbench(stream, std::move(options)));
  absl::Status status = bench->Allocate();
  if (status.ok()) status = bench->FillCold();
  if (!status.ok()) return status;
  return bench;
}

absl::Status CudaWorkbench::Allocate() {
  const int64_t rows = *std::max_element(options_.tokens.begin(), options_.tokens.end());
  const int64_t columns =
      std::max({shapes_.vocabulary, 2 * shapes_.feed_forward, shapes_.qkv_columns()});
  size_t scratch = std::max(AttentionScratchBytes(shapes_.attention, rows, shapes_.context),
                            SummarizeLogitsScratchBytes(rows, shapes_.vocabulary));
  scratch = std::max(scratch, SampleScratchBytes(kMostSampledRows, shapes_.vocabulary));
  for (const NamedWeight& weight : shapes_.Weights()) {
    for (const int64_t tokens : options_.tokens) {
      scratch = std::max({scratch, MatmulScratchBytes(weight.shape, tokens),
                          MatmulScratchBytes(weight.shape, tokens, DType::kF8E4M3)});
    }
  }
  const size_t wide = static_cast<size_t>(rows * columns);
  const std::pair<size_t, Buffer*> memories[] = {
      {options_.cold_bytes, &cold_},
      {static_cast<size_t>(columns) * sizeof(float), &scales_},
      {wide * sizeof(uint16_t), &activations_},
      {wide * sizeof(uint16_t), &outputs_},
      {wide * sizeof(float), &floats_},
      {wide * sizeof(float), &out_floats_},
      {static_cast<size_t>(shapes_.context) * shapes_.attention.head_dim * sizeof(float), &rope_},
      {scratch, &scratch_},
      {static_cast<size_t>(rows) * sizeof(LogitSummary), &summaries_},
      {kMostSampledRows * (sizeof(SampledSequence) + sizeof(SampledToken) + sizeof(int32_t)),
       &sampling_}};
  for (const auto& [bytes, buffer] : memories) {
    auto memory = AllocateBuffer(bytes);
    if (!memory.ok()) return memory.status();
    *buffer = *std::move(memory);
  }
  return absl::OkStatus();
}

absl::Status CudaWorkbench::FillCold() {
  const std::vector<uint64_t> numbers = SmallNumbers(std::min(kPatternBytes, options_.cold_bytes));
  const size_t pattern = numbers.size() * sizeof(uint64_t);
  for (const Buffer* buffer : {&cold_, &scales_, &activations_, &floats_, &rope_}) {
    for (size_t at = 0; at < buffer->bytes(); at += pattern) {
      CopyToDevice(stream_, static_cast<char*>(buffer->data()) + at, numbers.data(),
                   std::min(pattern, buffer->bytes() - at));
    }
  }
  return Synchronize(stream_);
}

absl::StatusOr<std::vector<OpCase>> CudaWorkbench::Cases() {
  cases_.clear();
  AddMatmuls();
  absl::Status status = AddAttention();
  if (status.ok()) status = AddStepOps();
  AddRowOps();
  if (status.ok()) status = AddSums();
  if (status.ok()) status = AddSampling();
  if (!status.ok()) return status;
  return cases_;
}

void CudaWorkbench::AddMatmuls() {
  for (const NamedWeight& named : shapes_.Weights()) {
    AddMatmuls(named, DType::kBF16);
    if (named.shape.dtype == DType::kF8E4M3) AddMatmuls(named, DType::kF8E4M3);
  }
}

void CudaWorkbench::AddMatmuls(const NamedWeight& named, DType activations) {
  const WeightShape shape = named.shape;
  const size_t weight_bytes = (WeightBytes(shape) + 255) / 256 * 256;
  const auto copies = static_cast<int64_t>(cold_.bytes() / weight_bytes);
  if (copies == 0) return;
  const bool fp8 = shape.dtype == DType::kF8E4M3;
  for (const int64_t tokens : options_.tokens) {
    auto run = [=, this](int64_t repetition) {
      const PackedWeight weight = {shape,
                                   static_cast<char*>(cold_.data()) +
                                       static_cast<size_t>(repetition % copies) * weight_bytes,
                                   fp8 ? static_cast<float*>(scales_.data()) : nullptr};
      const Tensor x(activations_.data(), activations, tokens, shape.columns);
      const Tensor out = F32(out_floats_, tokens, shape.rows);
      if (activations == DType::kBF16) {
        Matmul(stream_, x, weight, out, scratch_.data());
      } else {
        MultiplyQuantized(stream_, {x, F32(floats_, tokens, shape.segments)}, weight, out,
                          scratch_.data());
      }
    };
    const double elements = static_cast<double>(shape.rows * shape.columns);
    cases_.push_back(
        {absl::StrCat("matmul ", named.name),
         absl::StrFormat("T=%d %dx%d %s%s", tokens, shape.rows, shape.columns, fp8 ? "fp8" : "bf16",
                         activations == DType::kF8E4M3 ? " x fp8" : ""),
         elements * static_cast<double>(SizeOf(shape.dtype)),
         2 * elements * static_cast<double>(tokens), run});
  }
}

KvCacheLayer CudaWorkbench::Cache() const {
  const AttentionShape& shape = shapes_.attention;
  const size_t block_bytes =
      static_cast<size_t>(BlockElements(shape.kv_heads, shape.head_dim)) * sizeof(uint16_t);
  return {.data = cold_.data(),
          .blocks = static_cast<int32_t>(cold_.bytes() / block_bytes),
          .kv_heads = shape.kv_heads,
          .head_dim = shape.head_dim};
}

absl::StatusOr<std::shared_ptr<CudaWorkbench::Steps>> CudaWorkbench::MakeSteps(int32_t batch,
                                                                               int32_t tokens,
                                                                               int32_t position) {
  const int32_t blocks = BlocksOf(position + tokens);
  const int32_t rotations =
      std::clamp<int32_t>(Cache().blocks / (blocks * batch), 1, kMostRotations);
  auto steps = std::make_shared<Steps>();
  for (int32_t rotation = 0; rotation < rotations; ++rotation) {
    std::vector<int32_t> tables;
    for (int32_t i = 0; i < blocks * batch; ++i) {
      tables.push_back((rotation * blocks * batch + i) % Cache().blocks);
    }
    std::vector<SequenceSpan> spans;
    for (int32_t i = 0; i < batch; ++i) {
      spans.push_back({.first_row = i * tokens,
                       .tokens = tokens,
                       .position = position,
                       .blocks = tables.data() + i * blocks,
                       .block_count = blocks});
    }
    const std::vector<int32_t> ids(static_cast<size_t>(batch) * tokens, 1);
    const std::vector<int32_t> logit_rows(static_cast<size_t>(batch), 0);
    auto step = std::make_unique<StepUpload>();
    absl::Status status =
        step->Begin(stream_, {.ids = ids, .sequences = spans, .logit_rows = logit_rows});
    if (status.ok()) status = Synchronize(stream_);
    if (!status.ok()) return status;
    step->NoteSynchronized();
    steps->push_back(std::move(step));
  }
  return steps;
}

absl::Status CudaWorkbench::AddAttention() {
  const AttentionShape shape = shapes_.attention;
  const int32_t most = static_cast<int32_t>(options_.tokens.back());
  struct Case {
    int32_t batch, tokens, position;
  };
  std::vector<Case> wanted;
  for (const int32_t batch : options_.batches) wanted.push_back({batch, 1, shapes_.context - 1});
  wanted.push_back({1, std::min(most, shapes_.context), 0});
  wanted.push_back({1, std::min(most, shapes_.context / 8), shapes_.context - shapes_.context / 8});
  for (const auto& [batch, tokens, position] : wanted) {
    if (BlocksOf(position + tokens) * batch > Cache().blocks) continue;
    auto steps = MakeSteps(batch, tokens, position);
    if (!steps.ok()) return steps.status();
    const int64_t rows = int64_t{batch} * tokens;
    auto run = [=, this, steps = *steps](int64_t repetition) {
      const DeviceStep& step = (*steps)[static_cast<size_t>(repetition) % steps->size()]->step();
      Attention(stream_, Bf16(activations_, rows, shapes_.query_columns()), shape, step, Cache(),
                Bf16(outputs_, rows, shapes_.query_columns()), scratch_.data());
    };
    const double pairs = static_cast<double>(rows) * (position + (tokens + 1) / 2.0);
    const double block_bytes =
        static_cast<double>(BlockElements(shape.kv_heads, shape.head_dim)) * sizeof(uint16_t);
    cases_.push_back(
        {tokens == 1 ? "attention decode" : "attention prefill",
         tokens == 1 ? absl::StrFormat("batch=%d context=%d", batch, position + 1)
                     : absl::StrFormat("T=%d position=%d", tokens, position),
         static_cast<double>(batch) * (position + tokens) / kKvBlockTokens * block_bytes,
         pairs * shape.heads * shape.head_dim * 4, run});
  }
  return absl::OkStatus();
}

absl::Status CudaWorkbench::AddStepOps() {
  const int32_t most = static_cast<int32_t>(options_.tokens.back());
  for (const int32_t tokens : {1, std::min(most, shapes_.context)}) {
    auto steps = MakeSteps(1, tokens, 0);
    if (!steps.ok()) return steps.status();
    const std::string shape = absl::StrFormat("T=%d", tokens);
    const double elements = static_cast<double>(tokens) * static_cast<double>(shapes_.hidden);
    auto rope = [=, this, steps = *steps](int64_t) {
      RopeAndStoreKv(stream_, F32(floats_, tokens, shapes_.qkv_columns()),
                     F32(rope_, shapes_.context, shapes_.attention.head_dim), shapes_.attention,
                     steps->front()->step(), Cache(),
                     Bf16(outputs_, tokens, shapes_.query_columns()));
    };
    cases_.push_back({"rope", shape,
                      static_cast<double>(tokens) * static_cast<double>(shapes_.qkv_columns()) * 6,
                      0, rope});
    auto embed = [=, this, steps = *steps](int64_t) {
      Embed(stream_, steps->front()->step(), Bf16(cold_, 2, shapes_.hidden),
            F32(out_floats_, tokens, shapes_.hidden));
    };
    cases_.push_back({"embed", shape, elements * 6, 0, embed});
    auto gather = [=, this, steps = *steps](int64_t) {
      GatherRows(stream_, Bf16(activations_, tokens, shapes_.hidden), steps->front()->logit_rows(),
                 Bf16(outputs_, 1, shapes_.hidden));
    };
    cases_.push_back({"gather_rows", absl::StrCat("R=1 of ", shape),
                      static_cast<double>(shapes_.hidden) * 4, 0, gather});
  }
  return absl::OkStatus();
}

void CudaWorkbench::AddRowOps() {
  for (const int64_t tokens : {int64_t{1}, options_.tokens.back()}) {
    const double hidden = static_cast<double>(tokens * shapes_.hidden);
    const auto* norm = static_cast<const float*>(scales_.data());
    const std::string wide = absl::StrFormat("T=%d H=%d", tokens, shapes_.hidden);
    cases_.push_back({"rms_norm", wide, hidden * 6, 0, [=, this](int64_t) {
                        RmsNorm(stream_, F32(floats_, tokens, shapes_.hidden), nullptr, norm, 1e-5f,
                                Bf16(outputs_, tokens, shapes_.hidden));
                      }});
    cases_.push_back({"add_rms_norm", wide, hidden * 14, 0, [=, this](int64_t) {
                        const Tensor delta = F32(floats_, tokens, shapes_.hidden);
                        RmsNorm(stream_, F32(out_floats_, tokens, shapes_.hidden), &delta, norm,
                                1e-5f, Bf16(outputs_, tokens, shapes_.hidden));
                      }});
    cases_.push_back({"quantize", wide, hidden * 3, 0, [=, this](int64_t) {
                        QuantizeActivations(stream_, Bf16(activations_, tokens, shapes_.hidden),
                                            {.codes = Tensor(outputs_.data(), DType::kF8E4M3,
                                                             tokens, shapes_.hidden),
                                             .scales = F32(out_floats_, tokens, 1)});
                      }});
    cases_.push_back({"swiglu", absl::StrFormat("T=%d", tokens),
                      static_cast<double>(tokens * shapes_.feed_forward) * 10, 0,
                      [=, this](int64_t) {
                        SwiGlu(stream_, F32(floats_, tokens, 2 * shapes_.feed_forward),
                               Bf16(outputs_, tokens, shapes_.feed_forward));
                      }});
  }
}

// Bytes are those of all ranks in the GPU's one memory: parts are written to every peer and read
// there.
absl::Status CudaWorkbench::AddSums() {
  const int64_t most = std::min(kMostSummedRows, options_.tokens.back());
  groups_.clear();
  for (const int ranks : {2, 4}) {
    auto group = OneGpuRanks::Create(stream_, ranks, most, shapes_.hidden);
    if (!group.ok()) return group.status();
    groups_.push_back(*std::move(group));
    for (const int64_t tokens : {int64_t{1}, most}) {
      const double bytes_of_element = 4 + 8.0 * (ranks - 1) + 10;
      cases_.push_back(
          {"all_reduce_rms_norm",
           absl::StrFormat("T=%d H=%d, %d ranks on this GPU", tokens, shapes_.hidden, ranks),
           static_cast<double>(ranks * tokens * shapes_.hidden) * bytes_of_element, 0,
           [=, this, group = groups_.back().get()](int64_t) {
             group->AllReduceAddRmsNorm(tokens, static_cast<const float*>(scales_.data()));
           }});
    }
  }
  return absl::OkStatus();
}

absl::Status CudaWorkbench::AddSampling() {
  auto* sequences = static_cast<SampledSequence*>(sampling_.data());
  auto* tokens = reinterpret_cast<SampledToken*>(sequences + kMostSampledRows);
  auto* slots = reinterpret_cast<int32_t*>(tokens + kMostSampledRows);
  auto* summaries = static_cast<LogitSummary*>(summaries_.data());
  const SampledSequence usual = {.seed = 1, .temperature = 0.7f, .top_k = 50, .top_p = 0.95f};
  const std::vector<SampledSequence> initial(kMostSampledRows, usual);
  std::vector<int32_t> numbers;
  for (int32_t i = 0; i < kMostSampledRows; ++i) numbers.push_back(i);
  CopyToDevice(stream_, sequences, initial.data(), initial.size() * sizeof(SampledSequence));
  CopyToDevice(stream_, slots, numbers.data(), numbers.size() * sizeof(int32_t));
  for (const int64_t rows :
       {int64_t{1}, std::min<int64_t>(kMostSampledRows, options_.tokens.back())}) {
    const Tensor logits = F32(floats_, rows, shapes_.vocabulary);
    const std::string shape = absl::StrFormat("R=%d V=%d", rows, shapes_.vocabulary);
    const double bytes = static_cast<double>(rows * shapes_.vocabulary) * 4;
    cases_.push_back({"summarize_logits", shape, bytes, 0, [=, this](int64_t) {
                        SummarizeLogits(stream_, logits, summaries, scratch_.data());
                      }});
    SummarizeLogits(stream_, logits, summaries, scratch_.data());  // what sampling reads
    cases_.push_back({"sample top_k top_p", shape, bytes, 0, [=, this](int64_t) {
                        Sample(stream_, logits, summaries, slots, sequences, tokens,
                               scratch_.data());
                      }});
  }
  return Synchronize(stream_);
}

}  // namespace marcoro::cuda
