#include "worker/model/transformer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/check.h"
#include "worker/model/rope_table.h"
#include "worker/model/staged_communicator.h"

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

// Of the widest input of a linear product.
int64_t WidestInput(const ModelConfig& config, int world_size) {
  const int64_t query = int64_t{config.heads} / world_size * config.head_dim;
  return std::max({int64_t{config.hidden_size}, query, int64_t{config.ffn_size} / world_size});
}

StepLimits LimitsOf(const ModelConfig& config, const Shard& shard, const StepBounds& bounds) {
  const int64_t hidden = config.hidden_size;
  const int64_t ffn = config.ffn_size / shard.world_size;
  const int32_t heads = config.heads / shard.world_size;
  const int32_t kv_heads = config.kv_heads / shard.world_size;
  const int segments = config.reduction_segments() / shard.world_size;
  StepLimits limits = {.tokens = bounds.tokens,
                       .logit_rows = bounds.logit_rows,
                       .vocabulary = config.vocabulary_size,
                       .context_length = bounds.context_length,
                       .attention = {.heads = heads,
                                     .kv_heads = kv_heads,
                                     .head_dim = config.head_dim,
                                     .window = config.sliding_window},
                       .weights = {}};
  // BF16 where the parameters are FP8 asks for no less.
  const int64_t query = int64_t{heads} * config.head_dim;
  const int64_t key_value = int64_t{kv_heads} * config.head_dim;
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    limits.weights.push_back({dtype, query + 2 * key_value, hidden, 1});
    limits.weights.push_back({dtype, hidden, query, segments});
    limits.weights.push_back({dtype, 2 * ffn, hidden, 1});
    limits.weights.push_back({dtype, hidden, ffn, segments});
  }
  limits.weights.push_back({DType::kBF16, LogitShardRows(config, shard.world_size), hidden, 1});
  return limits;
}

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
    const StepBounds& bounds, int32_t kv_blocks, Backend& backend, Communicator& communicator,
    KvFormat kv_format) {
  absl::Status reserved = backend.Reserve(LimitsOf(config, shard, bounds));
  if (!reserved.ok()) return reserved;
  auto cache = KvCache::Create(backend, config.layers, config.kv_heads / shard.world_size,
                               config.head_dim, kv_blocks, kv_format);
  if (!cache.ok()) return cache.status();
  std::unique_ptr<Communicator> staged;
  if (!backend.host_memory() && communicator.host_memory()) {
    staged = std::make_unique<StagedCommunicator>(backend, communicator);
  }
  Communicator& reachable = staged == nullptr ? communicator : *staged;
  auto lm_head =
      VocabularyParallel::Create(backend, reachable, config.vocabulary_size,
                                 LogitShardRows(config, shard.world_size), bounds.logit_rows);
  if (!lm_head.ok()) return lm_head.status();
  auto linear = LinearProduct::Create(backend, bounds.tokens, WidestInput(config, shard.world_size),
                                      config.reduction_segments() / shard.world_size);
  if (!linear.ok()) return linear.status();
  auto transformer = std::unique_ptr<Transformer>(
      new Transformer(config, shard, std::move(parameters), bounds, *std::move(cache), backend,
                      std::move(staged), reachable, *std::move(linear), *std::move(lm_head)));
  if (absl::Status status = transformer->Allocate(); !status.ok()) return status;
  transformer->steps_ = backend.MakeStepRunner(
      LimitsOf(config, shard, bounds), reachable.repeatable(),
      [self = transformer.get()](const StepInput& step) { return self->Run(step); });
  return transformer;
}

Transformer::Transformer(const ModelConfig& config, const Shard& shard, ModelParameters parameters,
                         const StepBounds& bounds, KvCache cache, Backend& backend,
                         std::unique_ptr<Communicator> staged, Communicator& communicator,
                         LinearProduct linear, VocabularyParallel lm_head)
    : config_(config),
      shard_(shard),
      parameters_(std::move(parameters)),
      bounds_(bounds),
      cache_(std::move(cache)),
      backend_(backend),
      staged_(std::move(staged)),
      communicator_(communicator),
      linear_(std::move(linear)),
      lm_head_(std::move(lm_head)),
      attention_(LimitsOf(config, shard, bounds).attention) {}

absl::Status Transformer::Allocate() {
  for (const auto& entry : ActivationLayout(config_, shard_.world_size).entries) {
    auto buffer = backend_.Allocate(ActivationLayout::Bytes(entry, bounds_, backend_));
    if (!buffer.ok()) return buffer.status();
    activations_.push_back(*std::move(buffer));
  }
  if (absl::Status status = UploadNorms(); !status.ok()) return status;
  return UploadRopeTable();
}

absl::Status Transformer::UploadNorms() {
  std::vector<float> norms;
  const auto append = [&norms](const std::vector<float>& norm) {
    norms.insert(norms.end(), norm.begin(), norm.end());
  };
  for (const LayerParameters& layer : parameters_.layers) {
    append(layer.attention_norm);
    append(layer.ffn_norm);
  }
  append(parameters_.final_norm);
  auto buffer = backend_.Allocate(norms.size() * sizeof(float));
  if (!buffer.ok()) return buffer.status();
  norm_storage_ = *std::move(buffer);
  const auto* next = static_cast<const float*>(norm_storage_.data());
  for (int32_t layer = 0; layer < config_.layers; ++layer) {
    norms_.push_back({.attention = next, .ffn = next + config_.hidden_size});
    next += 2 * config_.hidden_size;
  }
  norms_.push_back({.attention = next});
  return backend_.Upload(norms.data(), norm_storage_.data(), norm_storage_.bytes());
}

absl::Status Transformer::UploadRopeTable() {
  const std::vector<float> table =
      MakeRopeTable(bounds_.context_length, config_.head_dim, config_.rope_theta);
  auto buffer = backend_.Allocate(table.size() * sizeof(float));
  if (!buffer.ok()) return buffer.status();
  rope_storage_ = *std::move(buffer);
  rope_ = Tensor(rope_storage_.data(), DType::kF32, bounds_.context_length, config_.head_dim);
  return backend_.Upload(table.data(), rope_storage_.data(), rope_storage_.bytes());
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
  const int64_t norm_elements = (2 * int64_t{config.layers} + 1) * config.hidden_size;
  const int64_t rope_elements = int64_t{bounds.context_length} * config.head_dim;
  bytes += static_cast<size_t>(bounds.logit_rows * logit_columns + norm_elements + rope_elements) *
           sizeof(float);
  bytes += LinearProduct::Bytes(backend, bounds.tokens, WidestInput(config, shard.world_size),
                                config.reduction_segments() / shard.world_size);
  return bytes + backend.ReservedBytes(LimitsOf(config, shard, bounds));
}

Transformer::Activations Transformer::ViewActivations(int64_t tokens) const {
  const ActivationLayout layout(config_, shard_.world_size);
  const auto view = [&](int index) {
    const auto& entry = layout.entries[index];
    return Tensor(activations_[index].data(), ActivationLayout::Type(entry, backend_),
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

absl::StatusOr<Tensor> Transformer::Forward(const StepPlan& plan) {
  cache_.Zero(backend_, plan.blocks_to_zero);
  if (plan.sequences.empty()) return Tensor();
  CollectSpans(plan);
  absl::Status status =
      steps_->Run({.ids = plan.tokens, .sequences = spans_, .logit_rows = logit_rows_});
  // What was repeated did not pass through the communicator.
  if (status.ok()) status = communicator_.NoteRepeated();
  if (!status.ok()) return status;
  return lm_head_.Logits(static_cast<int64_t>(logit_rows_.size()));
}

// The forward pass.
absl::Status Transformer::Run(const StepInput& step) {
  const Activations act = ViewActivations(static_cast<int64_t>(step.ids.size()));

  if (absl::Status status = ShareIds(step); !status.ok()) return status;
  backend_.Embed(step.ids, parameters_.embedding, act.residual);
  backend_.RmsNorm(act.residual, norms_[0].attention, config_.rms_norm_epsilon, act.normed);
  linear_.Prepare(act.normed);
  for (int index = 0; index < config_.layers; ++index) {
    if (absl::Status status = Layer(index, step, act); !status.ok()) return status;
  }
  if (step.logit_rows.empty()) return absl::OkStatus();
  const Tensor selected = act.selected.Rows(0, static_cast<int64_t>(step.logit_rows.size()));
  backend_.GatherRows(act.normed, step.logit_rows, selected);
  return lm_head_.Apply(selected, parameters_.lm_head);
}

// Tokens that rank 0's device sampled in the step before are known there alone. Nothing is told by
// whether there are any, so that steps with and without are one kind to who repeats them.
absl::Status Transformer::ShareIds(const StepInput& step) {
  int32_t* const ids = backend_.step_ids();
  if (ids == nullptr || communicator_.size() == 1) return absl::OkStatus();
  return communicator_.BroadcastIds(absl::MakeSpan(ids, step.ids.size()));
}

// One transformer block. On entry `normed` holds the block's normed input, prepared, on return the
// next block's (or the final norm).
absl::Status Transformer::Layer(int index, const StepInput& step, const Activations& act) {
  const LayerParameters& layer = parameters_.layers[index];
  const KvCacheLayer& cache = cache_.layer(index);

  ColumnParallel(linear_, act.normed, layer.qkv, act.qkv);
  backend_.RopeAndStoreKv(act.qkv, rope_, attention_, step.sequences, cache, act.query);
  backend_.Attention(act.query, attention_, step.sequences, cache, act.attended);
  const NormParameters ffn_norm = {norms_[index].ffn, config_.rms_norm_epsilon};
  absl::Status status = RowParallelAddRmsNorm(linear_, communicator_, act.attended, layer.o_proj,
                                              act.delta, act.residual, ffn_norm, act.normed);
  if (!status.ok()) return status;

  ColumnParallel(linear_, act.normed, layer.gate_up, act.gate_up);
  backend_.SwiGlu(act.gate_up, act.ffn);
  const NormParameters next_norm = {norms_[index + 1].attention, config_.rms_norm_epsilon};
  return RowParallelAddRmsNorm(linear_, communicator_, act.ffn, layer.down, act.delta, act.residual,
                               next_norm, act.normed);
}

void Transformer::CollectSpans(const StepPlan& plan) {
  spans_.clear();
  logit_rows_.clear();
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
    MARCORO_CHECK(step.logit_rows <= step.token_count);
    for (int32_t r = row - step.logit_rows; r < row; ++r) logit_rows_.push_back(r);
  }
  MARCORO_CHECK(row == static_cast<int64_t>(plan.tokens.size()));
  MARCORO_CHECK(blocks == plan.blocks.data() + plan.blocks.size());
  MARCORO_CHECK(row <= bounds_.tokens);
  MARCORO_CHECK(logit_rows_.size() <= static_cast<size_t>(bounds_.logit_rows));
}

}  // namespace marcoro
