#include "tests/kernels/cuda/step_machine.h"

#include <cstdio>
#include <cstdlib>

#include "tests/kernels/cuda/device_backends.h"
#include "tests/kernels/matrix.h"

namespace marcoro {
namespace {

constexpr int64_t kHidden = 64;
constexpr float kEpsilon = 1e-5f;

void CheckOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

}  // namespace

StepMachine::StepMachine(const StepMachineOptions& options) {
  auto backend = MakeDeviceBackend(/*threads=*/1, DType::kBF16, options.graphs);
  CheckOk(backend.status());
  backend_ = *std::move(backend);
  const StepLimits limits = Limits(kMostTokens);
  CheckOk(backend_->Reserve(limits));

  const int64_t query = int64_t{attention_.heads} * attention_.head_dim;
  const int64_t qkv = int64_t{attention_.heads + 2 * attention_.kv_heads} * attention_.head_dim;
  const auto parameter = [&](DType dtype, int64_t rows, int64_t columns, uint32_t seed) {
    parameters_.push_back(Random(dtype, rows, columns, seed));
    return Tensor(parameters_.back().data(), dtype, rows, columns);
  };
  table_ = parameter(DType::kBF16, kVocabulary, kHidden, 1);
  rope_ = parameter(DType::kF32, kContext, attention_.head_dim, 2);
  norm_ = parameter(DType::kF32, 1, kHidden, 3).Row<float>(0);
  qkv_ = Weight(qkv, kHidden, 1, 4);
  output_ = Weight(kHidden, query, 4, 5);
  head_ = Weight(kVocabulary, kHidden, 1, 6);
  parameters_.push_back(Make(
      static_cast<size_t>(kBlocks) *
      backend_->KvBlockBytes(attention_.kv_heads, attention_.head_dim, KvFormat::kActivation)));
  cache_ = {parameters_.back().data(), kBlocks, attention_.kv_heads, attention_.head_dim};

  residual_ = Activation(DType::kF32, kMostTokens, kHidden);
  normed_ = Activation(DType::kBF16, kMostTokens, kHidden);
  projected_ = Activation(DType::kF32, kMostTokens, qkv);
  query_ = Activation(DType::kBF16, kMostTokens, query);
  attended_ = Activation(DType::kBF16, kMostTokens, query);
  delta_ = Activation(DType::kF32, kMostTokens, kHidden);
  selected_ = Activation(DType::kBF16, kMostLogitRows, kHidden);
  logits_ = Activation(DType::kF32, kMostLogitRows, kVocabulary);
  steps_ = backend_->MakeStepRunner(limits, options.repeatable,
                                    [this](const StepInput& step) { return Body(step); });
}

StepLimits StepMachine::Limits(int64_t tokens) const {
  return {.tokens = tokens,
          .logit_rows = kMostLogitRows,
          .vocabulary = kVocabulary,
          .context_length = kContext,
          .attention = attention_,
          .weights = {{DType::kBF16, 256, kHidden, 1},
                      {DType::kBF16, kHidden, 128, 4},
                      {DType::kBF16, kVocabulary, kHidden, 1}}};
}

Buffer StepMachine::Make(size_t bytes) {
  auto buffer = backend_->Allocate(bytes);
  CheckOk(buffer.status());
  return *std::move(buffer);
}

Tensor StepMachine::Activation(DType dtype, int64_t rows, int64_t columns) {
  activations_.push_back(Make(static_cast<size_t>(rows * columns) * SizeOf(dtype)));
  return Tensor(activations_.back().data(), dtype, rows, columns);
}

Buffer StepMachine::Random(DType dtype, int64_t rows, int64_t columns, uint32_t seed) {
  const Matrix values = Matrix(dtype, rows, columns).FillNormal(seed, 0.3f);
  Buffer buffer = Make(static_cast<size_t>(rows * columns) * SizeOf(dtype));
  CheckOk(backend_->Upload(values.view().data, buffer.data(), buffer.bytes()));
  return buffer;
}

PackedWeight StepMachine::Weight(int64_t rows, int64_t columns, int segments, uint32_t seed) {
  PackedWeight weight = {.shape = {DType::kBF16, rows, columns, segments}};
  parameters_.push_back(Make(backend_->WeightBytes(weight.shape)));
  weight.data = parameters_.back().data();
  const Matrix values = Matrix(DType::kBF16, rows, columns).FillNormal(seed, 0.3f);
  backend_->PackWeight(weight, 0, rows, values.view().data);
  return weight;
}

// What a step reads, it has written.
void StepMachine::Poison() {
  for (const Buffer& buffer : activations_) {
    const std::vector<uint8_t> poison(buffer.bytes(), 0xff);
    CheckOk(backend_->Upload(poison.data(), buffer.data(), buffer.bytes()));
  }
}

absl::Status StepMachine::Body(const StepInput& step) {
  ++bodies_;
  if (absl::Status status = in_body(); !status.ok()) return status;
  const auto rows = static_cast<int64_t>(step.ids.size());
  const auto of_step = [rows](const Tensor& tensor) { return tensor.Rows(0, rows); };
  backend_->Embed(step.ids, table_, of_step(residual_));
  backend_->RmsNorm(of_step(residual_), norm_, kEpsilon, of_step(normed_));
  backend_->Matmul(of_step(normed_), qkv_, of_step(projected_));
  backend_->RopeAndStoreKv(of_step(projected_), rope_, attention_, step.sequences, cache_,
                           of_step(query_));
  backend_->Attention(of_step(query_), attention_, step.sequences, cache_, of_step(attended_));
  backend_->Matmul(of_step(attended_), output_, of_step(delta_));
  backend_->AddRmsNorm(of_step(residual_), of_step(delta_), norm_, kEpsilon, of_step(normed_));
  if (step.logit_rows.empty()) return absl::OkStatus();
  const auto logit_rows = static_cast<int64_t>(step.logit_rows.size());
  backend_->GatherRows(of_step(normed_), step.logit_rows, selected_.Rows(0, logit_rows));
  backend_->Matmul(selected_.Rows(0, logit_rows), head_, logits_.Rows(0, logit_rows));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint32_t>> StepMachine::Step(
    const std::vector<MachineSequence>& sequences) {
  Poison();
  ids_.clear();
  spans_.clear();
  logit_rows_.clear();
  for (const MachineSequence& sequence : sequences) {
    spans_.push_back({.first_row = static_cast<int32_t>(ids_.size()),
                      .tokens = static_cast<int32_t>(sequence.ids.size()),
                      .position = sequence.position,
                      .blocks = sequence.blocks.data(),
                      .block_count = static_cast<int32_t>(sequence.blocks.size())});
    ids_.insert(ids_.end(), sequence.ids.begin(), sequence.ids.end());
    logit_rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
  }
  absl::Status status = steps_->Run({.ids = ids_, .sequences = spans_, .logit_rows = logit_rows_});
  if (!status.ok()) return status;
  std::vector<uint32_t> logits(logit_rows_.size() * kVocabulary);
  status = backend_->Download(logits_.data, logits.data(), logits.size() * sizeof(uint32_t));
  if (!status.ok()) return status;
  return logits;
}

std::vector<uint8_t> StepMachine::Cache() {
  std::vector<uint8_t> bytes(
      static_cast<size_t>(kBlocks) *
      backend_->KvBlockBytes(attention_.kv_heads, attention_.head_dim, KvFormat::kActivation));
  CheckOk(backend_->Download(cache_.data, bytes.data(), bytes.size()));
  return bytes;
}

void StepMachine::MoveScratch() { CheckOk(backend_->Reserve(Limits(4096))); }

}  // namespace marcoro
