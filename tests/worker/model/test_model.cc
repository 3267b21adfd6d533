#include "tests/worker/model/test_model.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "tests/kernels/cuda/device_backends.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/loader.h"

namespace marcoro {
namespace {

void CheckOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

template <typename T>
T ValueOrDie(absl::StatusOr<T> value) {
  CheckOk(value.status());
  return *std::move(value);
}

}  // namespace

TestModel::TestModel(const TestModelOptions& options) {
  const bool absolute = options.checkpoint.front() == '/';
  const std::string directory =
      absolute ? options.checkpoint : std::string(MARCORO_TEST_DATA) + "/" + options.checkpoint;
  config_ = ValueOrDie(LoadModelConfig(directory));
  backend_ =
      ValueOrDie(options.backend == "cuda" ? MakeDeviceBackend(options.threads, options.activations)
                                           : CreateBackend({.name = options.backend,
                                                            .threads = options.threads,
                                                            .activations = options.activations}));
  communicator_ = MakeSingleCommunicator();
  auto source = ValueOrDie(CheckpointSource::Open(directory));
  LoadOptions load;
  load.linear_dtype = options.linear;
  auto parameters = ValueOrDie(LoadParameters(*source, config_, Shard(), load, *backend_));
  const StepBounds bounds{.tokens = 512, .logit_rows = 512, .context_length = 512};
  transformer_ = ValueOrDie(Transformer::Create(config_, Shard(), std::move(parameters), bounds,
                                                bounds.context_length / kKvBlockTokens, *backend_,
                                                *communicator_, options.kv));
}

std::vector<std::vector<float>> TestModel::Step(absl::Span<const TokenId> ids) {
  StepPlan plan;
  const auto count = static_cast<int32_t>(ids.size());
  const int32_t blocks = (position_ + count + kKvBlockTokens - 1) / kKvBlockTokens;
  plan.sequences.push_back(
      {.position = position_, .token_count = count, .block_count = blocks, .logit_rows = count});
  plan.tokens.assign(ids.begin(), ids.end());
  for (BlockId block = 0; block < blocks; ++block) plan.blocks.push_back(block);
  const Tensor logits = ValueOrDie(transformer_->Forward(plan));
  position_ += count;
  std::vector<std::vector<float>> rows(static_cast<size_t>(logits.rows));
  for (int64_t row = 0; row < logits.rows; ++row) {
    std::vector<float>& out = rows[static_cast<size_t>(row)];
    out.resize(static_cast<size_t>(logits.columns));
    CheckOk(backend_->Download(logits.RowBytes(row), out.data(), out.size() * sizeof(float)));
  }
  return rows;
}

std::vector<std::string> AvailableBackends() {
  std::vector<std::string> names;
  for (const char* name : {"reference", "avx2", "avx512"}) {
    if (CreateBackend({.name = name}).ok()) names.emplace_back(name);
  }
  for (const std::string& name : DeviceBackendNames()) names.push_back(name);
  return names;
}

}  // namespace marcoro
