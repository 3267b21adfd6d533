#include "tests/worker/engine/test_group.h"

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/kernels/cuda/device_backends.h"
#include "worker/collective/shared_memory.h"
#include "worker/collective/single.h"
#include "worker/engine/group_executor.h"
#include "worker/weights/checkpoint_source.h"
#include "worker/weights/loader.h"

namespace marcoro {
namespace {

constexpr absl::Duration kLongestWait = absl::Minutes(3);

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

void AppendBits(const OutputLogprob& logprob, std::vector<uint32_t>* bits) {
  bits->push_back(logprob.logprob.has_value() ? std::bit_cast<uint32_t>(*logprob.logprob)
                                              : 0xffffffffu);
  for (const auto& [id, value] : logprob.top) {
    bits->push_back(static_cast<uint32_t>(id));
    bits->push_back(std::bit_cast<uint32_t>(value));
  }
}

std::unique_ptr<Communicator> MakeCommunicator(int rank, int size, const std::string& prefix,
                                               KeyStore& keys) {
  if (size == 1) return MakeSingleCommunicator();
  return ValueOrDie(
      MakeSharedMemoryCommunicator({.rank = rank, .size = size, .key_prefix = prefix}, keys));
}

// Stands for a large model: every step takes that much longer.
class SlowExecutor final : public StepExecutor {
 public:
  SlowExecutor(StepExecutor& executor, absl::Duration delay) : executor_(executor), delay_(delay) {}

  absl::StatusOr<Tensor> Execute(const StepPlan& plan) override {
    absl::SleepFor(delay_);
    return executor_.Execute(plan);
  }
  absl::Status Heartbeat() override { return executor_.Heartbeat(); }

 private:
  StepExecutor& executor_;
  const absl::Duration delay_;
};

}  // namespace

void Collector::Deliver(std::vector<SequenceOutput> outputs) {
  absl::MutexLock lock(&mutex_);
  for (const SequenceOutput& output : outputs) {
    Completion& completion = completions_[output.client_id];
    completion.tokens.insert(completion.tokens.end(), output.tokens.begin(), output.tokens.end());
    for (const auto& logprob : output.logprobs) AppendBits(logprob, &completion.logprobs);
    for (const auto& logprob : output.prompt_logprobs)
      AppendBits(logprob, &completion.prompt_logprobs);
    completion.end = output.end;
    completion.error = output.error;
    completion.detail = output.detail;
    if (output.cached_tokens.has_value()) completion.cached_tokens = *output.cached_tokens;
  }
}

Completion Collector::Await(uint64_t client_id) {
  absl::MutexLock lock(&mutex_);
  const auto ended = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return completions_[client_id].end != EndReason::kRunning;
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&ended), kLongestWait)) {
    CheckOk(absl::DeadlineExceededError(absl::StrCat("request ", client_id, " did not end")));
  }
  return completions_[client_id];
}

Completion Collector::Now(uint64_t client_id) {
  absl::MutexLock lock(&mutex_);
  return completions_[client_id];
}

void Collector::AwaitTokens(uint64_t client_id, size_t count) {
  absl::MutexLock lock(&mutex_);
  const auto reached = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Completion& completion = completions_[client_id];
    return completion.tokens.size() >= count || completion.end != EndReason::kRunning;
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&reached), kLongestWait)) {
    CheckOk(absl::DeadlineExceededError(
        absl::StrCat("request ", client_id, " has fewer than ", count, " tokens")));
  }
}

TestGroup::TestGroup(const TestGroupOptions& options) : options_(options) {
  for (int rank = 0; rank < options.world_size; ++rank)
    ranks_.emplace_back([this, rank] { RunRank(rank); });
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&ready_));
}

TestGroup::~TestGroup() {
  engine_->Stop();
  for (std::thread& rank : ranks_) rank.join();
}

uint64_t TestGroup::Submit(EngineRequest request) {
  request.client_id = next_client_id_++;
  request.sink = collector_;
  const uint64_t client_id = request.client_id;
  engine_->Submit(std::move(request));
  return client_id;
}

void TestGroup::RunRank(int rank) {
  const std::string directory = absl::StrCat(MARCORO_TEST_DATA, "/", options_.checkpoint);
  const ModelConfig config = ValueOrDie(LoadModelConfig(directory));
  const Shard shard{.rank = rank, .world_size = options_.world_size};
  auto backend = ValueOrDie(
      options_.backend == "cuda"
          ? MakeDeviceBackend(/*threads=*/1, options_.activations)
          : CreateBackend({.name = options_.backend, .activations = options_.activations}));
  auto control = MakeCommunicator(rank, options_.world_size, "control", keys_);
  auto data = MakeCommunicator(rank, options_.world_size, "data", keys_);
  auto source = ValueOrDie(CheckpointSource::Open(directory));
  LoadOptions load;
  load.linear_dtype = options_.linear;
  auto parameters = ValueOrDie(LoadParameters(*source, config, shard, load, *backend));
  const SchedulerOptions& scheduler = options_.scheduler;
  const StepBounds bounds{.tokens = scheduler.max_tokens_per_step,
                          .logit_rows = scheduler.max_logit_rows_per_step,
                          .context_length = scheduler.context_length};
  auto transformer =
      ValueOrDie(Transformer::Create(config, shard, std::move(parameters), bounds,
                                     scheduler.kv_blocks, *backend, *data, options_.kv));
  StepBroadcast broadcast(control.get());
  Watchdog watchdog({.timeout = absl::Minutes(2)});
  if (rank > 0) return CheckOk(RunPeer(broadcast, *transformer, watchdog));

  GroupExecutor group_executor(broadcast, *transformer, watchdog);
  SlowExecutor executor(group_executor, options_.step_delay);
  Engine engine(
      {.scheduler = scheduler, .vocabulary = options_.device_sampling ? config.vocabulary_size : 0},
      *backend, executor);
  {
    absl::MutexLock lock(&mutex_);
    vocabulary_size_ = config.vocabulary_size;
    engine_ = &engine;
    ready_ = true;
  }
  CheckOk(engine.Run());
  CheckOk(broadcast.SendShutdown());
}

}  // namespace marcoro
