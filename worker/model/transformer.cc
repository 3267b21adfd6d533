#include "worker/model/transformer.h"

#include <array>
#include <cstring>
#include <utility>

#include "kernels/check.h"
#include "worker/model/rope_table.h"

namespace marcoro {

namespace {

// Widths of the activation matrices of a shard, in the order of Transformer::Activations.
struct ActivationLayout {
  struct Entry {
    int64_t columns;
    bool act;                 // the backend's activation type; otherwise F32
    bool logit_rows = false;  // as many rows as logits; otherwise as many as tokens
  };
  std::array<Entry, 9> entries;

  ActivationLayout(const ModelConfig& config, int world_size) {
    const int64_t hidden = config.hidden_size;
    const int64_t query = int64_t{config.heads} / world_size * config.head_dim;
    const int64_t key_value = int64_t{config.kv_heads} / world_size * config.head_dim;
    const int64_t ffn = config.ffn_size / world_size;
    entries = {{{hidden, false},
                {hidden, true},
                {query + 2 * key_value, false},
                {query, true},
                {query, true},
                {2 * ffn, false},
                {ffn, true},
                {hidden, false},
                {hidden, true, true}}};
  }

  static DType Type(const Entry& entry, const Backend& backend) {
    return entry.act ? backend.activation_dtype() : DType::kF32;
  }
  static size_t Bytes(const Entry& entry, const StepBounds& bounds, const Backend& backend) {
    const int64_t rows = entry.logit_rows ? bounds.logit_rows : bounds.tokens;
    return static_cast<size_t>(rows * entry.columns) * SizeOf(Type(entry, backend));
  }
};

}  // namespace

// Views of the activation buffers for a step of T tokens.
struct Transformer::Activations {
  Tensor residual;  // (T, H) F32
  Tensor normed;    // (T, H) act
  Tensor qkv;       // (T, (A + 2 C) D) F32
  Tensor query;     // (T, A D) act
  Tensor attended;  // (T, A D) act
  Tensor gate_up;   // (T, 2 F) F32
  Tensor ffn;       // (T, F) act
  Tensor delta;     // (T, H) F32
  Tensor selected;  // (R, H) act, the rows of normed that need logits; here with room for all R
};

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(
    const ModelConfig& config, const Shard& shard, ModelParameters parameters,
    const StepBounds& bounds, int32_t kv_blocks, Backend& backend, Communicator& communicator) {
  auto cache = KvCache::Create(backend, config.layers, config.kv_heads / shard.world_size,
                               config.head_dim, kv_blocks);
  if (!cache.ok()) return cache.status();
  auto lm_head =
      VocabularyParallel::Create(backend, communicator, config.vocabulary_size,
                                 LogitShardRows(config, shard.world_size), bounds.logit_rows);
  if (!lm_head.ok()) return lm_head.status();
  auto transformer = std::unique_ptr<Transformer>(
      new Transformer(config, std::move(parameters), bounds, *std::move(cache), backend,
                      communicator, *std::move(lm_head)));
  if (absl::Status status = transformer->Allocate(shard); !status.ok()) return status;
  return transformer;
}

Transformer::Transformer(const ModelConfig& config, ModelParameters parameters,
                         const StepBounds& bounds, KvCache cache, Backend& backend,
                         Communicator& communicator, VocabularyParallel lm_head)
    : config_(config),
      parameters_(std::move(parameters)),
      bounds_(bounds),
      cache_(std::move(cache)),
      backend_(backend),
      communicator_(communicator),
      lm_head_(std::move(lm_head)) {}

absl::Status Transformer::Allocate(const Shard& shard) {
  attention_ = {.heads = config_.heads / shard.world_size,
                .kv_heads = config_.kv_heads / shard.world_size,
                .head_dim = config_.head_dim,
                .window = config_.sliding_window};
  world_size_ = shard.world_size;
  rope_ = MakeRopeTable(bounds_.context_length, config_.head_dim, config_.rope_theta);
  for (const auto& entry : ActivationLayout(config_, world_size_).entries) {
    auto buffer = backend_.Allocate(ActivationLayout::Bytes(entry, bounds_, backend_));
    if (!buffer.ok()) return buffer.status();
    storage_.push_back(*std::move(buffer));
  }
  return absl::OkStatus();
}

size_t Transformer::ActivationBytes(const ModelConfig& config, const Shard& shard,
                                    const StepBounds& bounds, const Backend& backend) {
  size_t bytes = 0;
  for (const auto& entry : ActivationLayout(config, shard.world_size).entries) {
    bytes += ActivationLayout::Bytes(entry, bounds, backend);
  }
  const int64_t shard_rows = LogitShardRows(config, shard.world_size);
  const int64_t logit_columns = shard.rank == 0 && shard.world_size > 1
                                    ? shard_rows * (1 + shard.world_size) + config.vocabulary_size
                                    : shard_rows;
  return bytes + static_cast<size_t>(bounds.logit_rows * logit_columns) * sizeof(float);
}

Transformer::Activations Transformer::ViewActivations(int64_t tokens) const {
  const ActivationLayout layout(config_, world_size_);
  const auto view = [&](int index) {
    const auto& entry = layout.entries[index];
    return Tensor(storage_[index].data(), ActivationLayout::Type(entry, backend_),
                  entry.logit_rows ? bounds_.logit_rows : tokens, entry.columns);
  };
  return {.residual = view(0),
          .normed = view(1),
          .qkv = view(2),
          .query = view(3),
          .attended = view(4),
          .gate_up = view(5),
          .ffn = view(6),
          .delta = view(7),
          .selected = view(8)};
}

// The forward pass.
absl::StatusOr<Tensor> Transformer::Forward(const StepPlan& plan) {
  cache_.Zero(backend_, plan.blocks_to_zero);
  if (plan.sequences.empty()) return Tensor();
  CollectSpans(plan);
  const Activations act = ViewActivations(static_cast<int64_t>(plan.tokens.size()));

  backend_.Embed(plan.tokens, parameters_.embedding, act.residual);
  backend_.RmsNorm(act.residual, parameters_.layers[0].attention_norm.data(),
                   config_.rms_norm_epsilon, act.normed);
  for (int index = 0; index < config_.layers; ++index) {
    if (absl::Status status = Layer(index, act); !status.ok()) return status;
  }
  const int64_t rows = SelectLogitRows(plan, act.normed, act.selected);
  if (rows == 0) return Tensor();
  return lm_head_.Apply(act.selected.Rows(0, rows), parameters_.lm_head);
}

// One transformer block. On entry `normed` holds the block's normed input, on return the next
// block's (or the final norm).
absl::Status Transformer::Layer(int index, const Activations& act) {
  const LayerParameters& layer = parameters_.layers[index];
  const bool last = index + 1 == config_.layers;
  const std::vector<float>& next_norm =
      last ? parameters_.final_norm : parameters_.layers[index + 1].attention_norm;
  const Tensor rope(const_cast<float*>(rope_.data()), DType::kF32, bounds_.context_length,
                    config_.head_dim);

  ColumnParallel(backend_, act.normed, layer.qkv, act.qkv);
  backend_.RopeAndStoreKv(act.qkv, rope, attention_, spans_, cache_.layer(index), act.query);
  backend_.Attention(act.query, attention_, spans_, cache_.layer(index), act.attended);
  absl::Status status = RowParallel(backend_, communicator_, act.attended, layer.o_proj, act.delta);
  if (!status.ok()) return status;
  backend_.AddRmsNorm(act.residual, act.delta, layer.ffn_norm.data(), config_.rms_norm_epsilon,
                      act.normed);

  ColumnParallel(backend_, act.normed, layer.gate_up, act.gate_up);
  backend_.SwiGlu(act.gate_up, act.ffn);
  status = RowParallel(backend_, communicator_, act.ffn, layer.down, act.delta);
  if (!status.ok()) return status;
  backend_.AddRmsNorm(act.residual, act.delta, next_norm.data(), config_.rms_norm_epsilon,
                      act.normed);
  return absl::OkStatus();
}

void Transformer::CollectSpans(const StepPlan& plan) {
  spans_.clear();
  const BlockId* blocks = plan.blocks.data();
  int32_t row = 0;
  for (const SequenceStep& step : plan.sequences) {
    MARCORO_CHECK(step.position + step.token_count <= bounds_.context_length);
    MARCORO_CHECK(step.block_count * kKvBlockTokens >= step.position + step.token_count);
    spans_.push_back({.first_row = row,
                      .tokens = step.token_count,
                      .position = step.position,
                      .blocks = blocks,
                      .block_count = step.block_count});
    row += step.token_count;
    blocks += step.block_count;
  }
  MARCORO_CHECK(row == static_cast<int64_t>(plan.tokens.size()));
  MARCORO_CHECK(blocks == plan.blocks.data() + plan.blocks.size());
  MARCORO_CHECK(row <= bounds_.tokens);
}

int64_t Transformer::SelectLogitRows(const StepPlan& plan, const Tensor& from,
                                     const Tensor& to) const {
  int64_t rows = 0;
  int64_t end = 0;
  for (const SequenceStep& step : plan.sequences) {
    end += step.token_count;
    MARCORO_CHECK(step.logit_rows <= step.token_count && rows + step.logit_rows <= to.rows);
    if (step.logit_rows == 0) continue;
    const size_t bytes = static_cast<size_t>(step.logit_rows * from.columns) * SizeOf(from.dtype);
    std::memcpy(to.RowBytes(rows), from.RowBytes(end - step.logit_rows), bytes);
    rows += step.logit_rows;
  }
  return rows;
}

}  // namespace marcoro
