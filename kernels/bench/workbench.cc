#include "kernels/bench/workbench.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/bench/model_shapes.h"

namespace marcoro {
namespace {

constexpr ModelShapes kShapes = {};
constexpr int64_t kHidden = kShapes.hidden;
constexpr int64_t kFeedForward = kShapes.feed_forward;
constexpr int64_t kVocabulary = kShapes.vocabulary;
constexpr int32_t kContext = kShapes.context;
constexpr int32_t kPrefillTokens = 512;
constexpr AttentionShape kAttention = kShapes.attention;
constexpr int64_t kQkvColumns = kShapes.qkv_columns();
constexpr size_t kWeightBytes = size_t{600} << 20;
constexpr size_t kQuickWeightBytes = size_t{32} << 20;
constexpr int64_t kMaxColumns = kVocabulary;

// With the second highest bit of every byte clear, an E4M3 code and a BF16 are smaller than 2, an
// F32 smaller than 4.
void FillWithSmallNumbers(Buffer& buffer) {
  std::mt19937_64 random(1);
  char* data = static_cast<char*>(buffer.data());
  for (size_t i = 0; i + sizeof(uint64_t) <= buffer.bytes(); i += sizeof(uint64_t)) {
    const uint64_t bits = random() & 0xbfbfbfbfbfbfbfbf;
    std::memcpy(data + i, &bits, sizeof(bits));
  }
}

absl::Status Allocate(Backend& backend, size_t bytes, Buffer& buffer) {
  absl::StatusOr<Buffer> memory = backend.Allocate(bytes);
  if (!memory.ok()) return memory.status();
  buffer = *std::move(memory);
  FillWithSmallNumbers(buffer);
  return absl::OkStatus();
}

// Behind the shape of a case of attention.
const char* Suffix(KvFormat format) { return format == KvFormat::kFp8 ? " kv=fp8" : ""; }

}  // namespace

Workbench::Workbench(Backend& backend, bool quick)
    : backend_(backend),
      tokens_(quick ? std::vector<int64_t>{1, 8} : std::vector<int64_t>{1, 8, 32, 128, 512}),
      scales_(kVocabulary, 0.01f),
      summaries_(tokens_.back()) {
  for (int64_t i = 0; i < tokens_.back(); ++i) {
    ids_.push_back(static_cast<int32_t>(i * 7919 % kVocabulary));
  }
}

absl::StatusOr<std::unique_ptr<Workbench>> Workbench::Create(Backend& backend, bool quick) {
  std::unique_ptr<Workbench> bench(new Workbench(backend, quick));
  const size_t rows = static_cast<size_t>(bench->tokens_.back());
  const size_t act = SizeOf(backend.activation_dtype());
  const std::pair<size_t, Buffer*> memories[] = {
      {quick ? kQuickWeightBytes : kWeightBytes, &bench->weights_},
      {rows * kFeedForward * act, &bench->activations_},
      {rows * kFeedForward * act, &bench->outputs_},
      {rows * kMaxColumns * sizeof(float), &bench->floats_},
      {rows * kMaxColumns * sizeof(float), &bench->out_floats_}};
  for (const auto& [bytes, buffer] : memories) {
    if (absl::Status status = Allocate(backend, bytes, *buffer); !status.ok()) return status;
  }
  return bench;
}

std::vector<OpCase> Workbench::Cases() {
  std::vector<OpCase> cases;
  AddMatmuls(cases);
  for (const KvFormat format : {KvFormat::kActivation, KvFormat::kFp8}) {
    AddAttentionDecode(format, cases);
    AddAttentionPrefill(format, cases);
  }
  AddRope(cases);
  AddNorms(cases);
  AddRowOps(cases);
  return cases;
}

Tensor Workbench::Activations(int64_t rows, int64_t columns) const {
  return Tensor(activations_.data(), backend_.activation_dtype(), rows, columns);
}
Tensor Workbench::Floats(int64_t rows, int64_t columns) const {
  return Tensor(floats_.data(), DType::kF32, rows, columns);
}
Tensor Workbench::OutputFloats(int64_t rows, int64_t columns) const {
  return Tensor(out_floats_.data(), DType::kF32, rows, columns);
}

KvCacheLayer Workbench::Cache(KvFormat format) const {
  const size_t block_bytes =
      backend_.KvBlockBytes(kAttention.kv_heads, kAttention.head_dim, format);
  return {.data = weights_.data(),
          .blocks = static_cast<int32_t>(weights_.bytes() / block_bytes),
          .kv_heads = kAttention.kv_heads,
          .head_dim = kAttention.head_dim,
          .format = format};
}

void Workbench::AddMatmuls(std::vector<OpCase>& cases) {
  for (const NamedWeight& named : kShapes.Weights()) {
    const WeightShape& shape = named.shape;
    const size_t weight_bytes = backend_.WeightBytes(shape);
    const int64_t copies = static_cast<int64_t>(weights_.bytes() / weight_bytes);
    if (copies == 0) continue;  // only in quick mode
    const bool fp8 = shape.dtype == DType::kF8E4M3;
    for (int64_t tokens : tokens_) {
      auto run = [=, this](int64_t repetition) {
        const PackedWeight weight = {
            shape, static_cast<char*>(weights_.data()) + repetition % copies * weight_bytes,
            fp8 ? scales_.data() : nullptr};
        backend_.Matmul(Activations(tokens, shape.columns), weight,
                        OutputFloats(tokens, shape.rows));
      };
      const double elements = static_cast<double>(shape.rows * shape.columns);
      cases.push_back({absl::StrCat("matmul ", named.name),
                       absl::StrFormat("T=%d %dx%d %s", tokens, shape.rows, shape.columns,
                                       fp8 ? "fp8" : "bf16"),
                       elements * static_cast<double>(SizeOf(shape.dtype)),
                       2 * elements * static_cast<double>(tokens), run});
    }
  }
}

void Workbench::AddAttentionDecode(KvFormat format, std::vector<OpCase>& cases) {
  const KvCacheLayer cache = Cache(format);
  constexpr int32_t kBlocks = kContext / kKvBlockTokens;
  const int32_t sequences_in_cache = cache.blocks / kBlocks;
  auto blocks = std::make_shared<std::vector<int32_t>>(cache.blocks);
  for (int32_t i = 0; i < cache.blocks; ++i) (*blocks)[i] = i;
  for (int32_t batch : {1, 8, 32}) {
    if (batch > sequences_in_cache || batch > tokens_.back()) continue;
    auto run = [=, this](int64_t repetition) {
      std::vector<SequenceSpan> spans;
      for (int32_t i = 0; i < batch; ++i) {
        const int64_t sequence = (repetition * batch + i) % sequences_in_cache;
        spans.push_back({.first_row = i,
                         .tokens = 1,
                         .position = kContext - 1,
                         .blocks = blocks->data() + sequence * kBlocks,
                         .block_count = kBlocks});
      }
      constexpr int64_t kColumns = kAttention.heads * kAttention.head_dim;
      backend_.Attention(Activations(batch, kColumns), kAttention, spans, cache,
                         Tensor(outputs_.data(), backend_.activation_dtype(), batch, kColumns));
    };
    const double keys = static_cast<double>(batch) * kContext;
    cases.push_back({"attention decode",
                     absl::StrFormat("batch=%d context=%d%s", batch, kContext, Suffix(format)),
                     keys / kKvBlockTokens *
                         static_cast<double>(backend_.KvBlockBytes(kAttention.kv_heads,
                                                                   kAttention.head_dim, format)),
                     keys * kAttention.heads * kAttention.head_dim * 4, run});
  }
}

void Workbench::AddAttentionPrefill(KvFormat format, std::vector<OpCase>& cases) {
  const KvCacheLayer cache = Cache(format);
  auto blocks = std::make_shared<std::vector<int32_t>>(kContext / kKvBlockTokens);
  for (size_t i = 0; i < blocks->size(); ++i) (*blocks)[i] = static_cast<int32_t>(i);
  const int32_t tokens = std::min<int32_t>(kPrefillTokens, static_cast<int32_t>(tokens_.back()));
  for (int32_t position : {0, kContext - kPrefillTokens}) {
    auto run = [=, this](int64_t) {
      const SequenceSpan span = {.first_row = 0,
                                 .tokens = tokens,
                                 .position = position,
                                 .blocks = blocks->data(),
                                 .block_count = static_cast<int32_t>(blocks->size())};
      constexpr int64_t kColumns = kAttention.heads * kAttention.head_dim;
      backend_.Attention(Activations(tokens, kColumns), kAttention, absl::MakeConstSpan(&span, 1),
                         cache,
                         Tensor(outputs_.data(), backend_.activation_dtype(), tokens, kColumns));
    };
    const double pairs = static_cast<double>(tokens) * (position + (tokens + 1) / 2.0);
    const double keys = position + tokens;
    cases.push_back({"attention prefill",
                     absl::StrFormat("T=%d position=%d%s", tokens, position, Suffix(format)),
                     keys / kKvBlockTokens *
                         static_cast<double>(backend_.KvBlockBytes(kAttention.kv_heads,
                                                                   kAttention.head_dim, format)),
                     pairs * kAttention.heads * kAttention.head_dim * 4, run});
  }
}

void Workbench::AddRope(std::vector<OpCase>& cases) {
  const KvCacheLayer cache = Cache(KvFormat::kActivation);
  auto blocks = std::make_shared<std::vector<int32_t>>(kContext / kKvBlockTokens);
  for (size_t i = 0; i < blocks->size(); ++i) (*blocks)[i] = static_cast<int32_t>(i);
  auto table = std::make_shared<std::vector<float>>(kContext * kAttention.head_dim, 0.5f);
  for (int64_t tokens : {int64_t{1}, tokens_.back()}) {
    auto run = [=, this](int64_t) {
      const SequenceSpan span = {.first_row = 0,
                                 .tokens = static_cast<int32_t>(tokens),
                                 .position = 0,
                                 .blocks = blocks->data(),
                                 .block_count = static_cast<int32_t>(blocks->size())};
      const Tensor rope(table->data(), DType::kF32, kContext, kAttention.head_dim);
      backend_.RopeAndStoreKv(Floats(tokens, kQkvColumns), rope, kAttention,
                              absl::MakeConstSpan(&span, 1), cache,
                              Activations(tokens, kAttention.heads * kAttention.head_dim));
    };
    const double elements = static_cast<double>(tokens * kQkvColumns);
    cases.push_back({"rope", absl::StrFormat("T=%d", tokens),
                     elements * static_cast<double>(4 + SizeOf(backend_.activation_dtype())), 0,
                     run});
  }
}

void Workbench::AddNorms(std::vector<OpCase>& cases) {
  const double act = static_cast<double>(SizeOf(backend_.activation_dtype()));
  for (int64_t tokens : {int64_t{1}, tokens_.back()}) {
    const double elements = static_cast<double>(tokens * kHidden);
    const std::string shape = absl::StrFormat("T=%d H=%d", tokens, kHidden);
    cases.push_back({"rms_norm", shape, elements * (4 + act), 0, [=, this](int64_t) {
                       backend_.RmsNorm(Floats(tokens, kHidden), scales_.data(), 1e-5f,
                                        Activations(tokens, kHidden));
                     }});
    cases.push_back({"add_rms_norm", shape, elements * (12 + act), 0, [=, this](int64_t) {
                       backend_.AddRmsNorm(OutputFloats(tokens, kHidden), Floats(tokens, kHidden),
                                           scales_.data(), 1e-5f, Activations(tokens, kHidden));
                     }});
  }
}

void Workbench::AddRowOps(std::vector<OpCase>& cases) {
  const double act = static_cast<double>(SizeOf(backend_.activation_dtype()));
  for (int64_t tokens : {int64_t{1}, tokens_.back()}) {
    const std::string shape = absl::StrFormat("T=%d", tokens);
    const double feed_forward = static_cast<double>(tokens * kFeedForward);
    cases.push_back({"swiglu", shape, feed_forward * (8 + act), 0, [=, this](int64_t) {
                       backend_.SwiGlu(Floats(tokens, 2 * kFeedForward),
                                       Activations(tokens, kFeedForward));
                     }});
    const int64_t table_rows = std::min<int64_t>(
        kVocabulary, static_cast<int64_t>(weights_.bytes() / (kHidden * SizeOf(DType::kBF16))));
    auto ids = std::make_shared<std::vector<int32_t>>(ids_.begin(), ids_.begin() + tokens);
    for (int32_t& id : *ids) id %= static_cast<int32_t>(table_rows);
    cases.push_back(
        {"embed", shape, static_cast<double>(tokens * kHidden * 6), 0, [=, this](int64_t) {
           backend_.Embed(*ids, Tensor(weights_.data(), DType::kBF16, table_rows, kHidden),
                          OutputFloats(tokens, kHidden));
         }});
    cases.push_back({"summarize_logits", absl::StrFormat("R=%d V=%d", tokens, kVocabulary),
                     static_cast<double>(tokens * kVocabulary * 4), 0, [=, this](int64_t) {
                       backend_.SummarizeLogits(
                           Floats(tokens, kVocabulary),
                           absl::MakeSpan(summaries_).subspan(0, static_cast<size_t>(tokens)));
                     }});
  }
}

}  // namespace marcoro
