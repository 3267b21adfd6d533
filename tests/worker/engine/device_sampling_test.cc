// A backend's own sampler changes no request's tokens, log-probabilities or end, in a group of any
// size: whole lives of an engine with it and without. MARCORO_TEST_SEED replays a failing life,
// MARCORO_TEST_LIVES runs more of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/token_sampler.h"
#include "tests/kernels/cuda/device_backends.h"
#include "tests/worker/engine/table_model.h"
#include "tests/worker/engine/test_group.h"
#include "worker/engine/engine.h"

namespace marcoro {
namespace {

constexpr int32_t kContext = 96;

// Requests, and what becomes of them from outside.
struct Event {
  int step = 0;  // while which it happens; 0: before the first
  EngineRequest request;
  int cancelled = -1;  // step
};

class RandomLife {
 public:
  explicit RandomLife(uint64_t seed) : random_(seed) {
    for (int i = 0; i < 24; ++i) shared_.push_back(Draw(0, kAfterwardsNan - 1));
  }

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Chance(double probability) { return std::bernoulli_distribution(probability)(random_); }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[Draw(0, static_cast<int>(values.size()) - 1)];
  }
  SchedulerOptions Scheduler() {
    return {.kv_blocks = Pick({6, 9, 100}),
            .context_length = kContext,
            .max_sequences_per_step = Pick({2, 6, 20}),
            .max_tokens_per_step = Pick({9, 30, kMostTableTokens}),
            .max_logit_rows_per_step = Pick({7, 20, kMostTableTokens}),
            .prefix_cache = Chance(0.7)};
  }
  std::vector<Event> Events() {
    std::vector<Event> events;
    for (int i = 0; i < 30; ++i) {
      const int step = i == 0 || Chance(0.3) ? 0 : Draw(1, 25);
      events.push_back({.step = step, .request = Request()});
      if (Chance(0.15)) events.back().cancelled = step + Draw(1, 15);
    }
    return events;
  }

 private:
  std::vector<TokenId> Tokens(int low, int high) {
    std::vector<TokenId> tokens(static_cast<size_t>(Draw(low, high)));
    for (TokenId& token : tokens) token = Draw(0, kAfterwardsNan - 1);
    return tokens;
  }
  EngineRequest Request();
  SamplingParams Sampling();

  std::mt19937_64 random_;
  std::vector<TokenId> shared_;  // the beginning of some prompts
};

SamplingParams RandomLife::Sampling() {
  SamplingParams params;
  params.seed = random_();
  params.temperature = Pick({0.0f, 0.7f, 1.0f, 1.6f});
  params.top_k = Pick({0, 0, 5, 30});
  params.top_p = Pick({1.0f, 1.0f, 0.9f});
  params.min_p = Pick({0.0f, 0.0f, 0.02f});
  params.typical_p = Pick({1.0f, 1.0f, 0.8f});
  params.repetition_penalty = Pick({1.0f, 1.0f, 1.2f, 1e-38f});
  params.presence_penalty = Pick({0.0f, 0.0f, 0.5f});
  params.frequency_penalty = Pick({0.0f, 0.0f, 0.5f});
  if (Chance(0.2)) params.logit_bias = {{3, 2}, {8, -3}};
  if (Chance(0.1)) params.logit_bias = {{3, 1.1f}, {3, 0.7f}};  // twice: left to the processor
  if (Chance(0.1)) params.allowed_token_ids = {1, 2, 3, 4, 5, 6, 7, 8, 57};
  if (Chance(0.2)) params.bad_words = {{1}, {2, 3}, {4, 4, 4}};
  if (Chance(0.05)) params.allowed_token_ids = {1};  // with the bad words: none
  if (Chance(0.3)) {
    params.end_token_ids = {4, 5, 6};
    params.min_tokens = Draw(1, 12);
  }
  params.logprobs = Pick({-1, 0, 2, 20});
  return params;
}

EngineRequest RandomLife::Request() {
  EngineRequest request;
  if (Chance(0.5)) {
    request.prompt.assign(shared_.begin(), shared_.begin() + Draw(1, 24));
  }
  for (const TokenId token : Tokens(1, 12)) request.prompt.push_back(token);
  if (Chance(0.03))
    request.prompt.back() = Pick({kAfterwardsNan, kAfterwardsInfinite, kAfterwardsNothing});
  request.max_tokens = Chance(0.1) ? 0 : Draw(1, 60);
  if (request.max_tokens > 3 && Chance(0.2)) request.generated = Tokens(1, 3);
  request.priority = Draw(-1, 1);
  if (request.max_tokens == 0 || Chance(0.2)) request.prompt_logprobs = Draw(0, 3);
  if (Chance(0.5)) request.stop_token_ids = {4, 5, 6};
  request.sampling = Sampling();
  return request;
}

// Runs an engine on this thread until everything has ended.
class Life {
 public:
  Life(Backend& backend, const SchedulerOptions& scheduler, bool on_device, int ranks = 1)
      : executor_(backend, ranks),
        engine_({.scheduler = scheduler,
                 .heartbeat_interval = absl::Milliseconds(1),
                 .vocabulary = on_device ? kTableVocabulary : 0},
                backend, executor_),
        sink_(std::make_shared<EndingSink>(this)) {}

  std::map<uint64_t, Completion> Run(const std::vector<Event>& events) {
    open_ = events.size();
    Happen(events, 0);
    executor_.during_step = [&](int step) { Happen(events, step); };
    EXPECT_TRUE(engine_.Run().ok());
    std::map<uint64_t, Completion> completions;
    for (uint64_t id = 0; id < events.size(); ++id) completions[id] = sink_->collector.Now(id);
    return completions;
  }
  int late_tokens() const { return executor_.late_tokens; }
  EngineSnapshot snapshot() const { return engine_.snapshot(); }

 private:
  class EndingSink final : public OutputSink {
   public:
    explicit EndingSink(Life* life) : life_(life) {}
    void Deliver(std::vector<SequenceOutput> outputs) override {
      size_t ended = 0;
      for (const SequenceOutput& output : outputs) {
        const bool counts = !life_->cancelled_.contains(output.client_id);
        ended += counts && output.end != EndReason::kRunning ? 1 : 0;
      }
      collector.Deliver(std::move(outputs));
      for (; ended > 0; --ended) life_->EndOne();
    }
    Collector collector;

   private:
    Life* life_;
  };

  void EndOne() {
    if (--open_ == 0) engine_.Stop();
  }

  void Happen(const std::vector<Event>& events, int step) {
    for (size_t i = 0; i < events.size(); ++i) {
      if (events[i].step == step) {
        EngineRequest request = events[i].request;
        request.sink = sink_;
        request.client_id = i;
        engine_.Submit(std::move(request));
      }
      const bool runs = sink_->collector.Now(i).end == EndReason::kRunning;
      if (events[i].cancelled == step && runs) {
        engine_.Cancel(sink_.get(), i);
        cancelled_.insert(i);
        EndOne();
      }
    }
  }

  TableExecutor executor_;
  Engine engine_;
  const std::shared_ptr<EndingSink> sink_;
  std::set<uint64_t> cancelled_;
  size_t open_ = 0;  // requests that have not ended
};

int FromEnvironment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

// By the number of ranks.
class DeviceSamplingTest : public testing::TestWithParam<int> {};

TEST_P(DeviceSamplingTest, GivesEveryRequestWhatTheProcessorGivesIt) {
  const int first_seed = FromEnvironment("MARCORO_TEST_SEED", 1);
  const int ranks = GetParam();
  const int usual_lives = ranks == 1 ? 12 : 8 / ranks;
  const int lives = FromEnvironment("MARCORO_TEST_LIVES", usual_lives);
  EngineSnapshot totals;
  int late_tokens = 0;
  for (int seed = first_seed; seed < first_seed + lives; ++seed) {
    SCOPED_TRACE("MARCORO_TEST_SEED=" + std::to_string(seed));
    RandomLife random(static_cast<uint64_t>(seed));
    const SchedulerOptions scheduler = random.Scheduler();
    const std::vector<Event> events = random.Events();
    const auto backend = MakeDeviceBackend(/*threads=*/1);
    ASSERT_TRUE(backend.ok()) << backend.status();
    const auto expected = Life(**backend, scheduler, /*on_device=*/false).Run(events);
    Life life(**backend, scheduler, /*on_device=*/true, ranks);
    const auto found = life.Run(events);
    for (const auto& [id, completion] : expected) {
      SCOPED_TRACE("request " + std::to_string(id));
      const Completion& other = found.at(id);
      if (events[id].cancelled >= 0) {  // sooner or later
        const size_t common = std::min(other.tokens.size(), completion.tokens.size());
        ASSERT_TRUE(std::equal(other.tokens.begin(), other.tokens.begin() + common,
                               completion.tokens.begin()));
        continue;
      }
      ASSERT_EQ(other.tokens, completion.tokens);
      ASSERT_EQ(other.logprobs, completion.logprobs);
      ASSERT_EQ(other.end, completion.end);
      ASSERT_EQ(other.error, completion.error);
      ASSERT_EQ(other.detail, completion.detail);
      // How much of a prompt was told before a failure depends on how it was cut into chunks.
      if (completion.end == EndReason::kError) continue;
      ASSERT_EQ(other.prompt_logprobs, completion.prompt_logprobs);
    }
    const EngineSnapshot snapshot = life.snapshot();
    EXPECT_EQ(snapshot.scheduler.kv_blocks_used, 0);
    late_tokens += life.late_tokens();
    totals.scheduler.preemptions += snapshot.scheduler.preemptions;
    totals.finished_stop += snapshot.finished_stop;
    totals.finished_length += snapshot.finished_length;
    totals.finished_cancelled += snapshot.finished_cancelled;
    totals.finished_error += snapshot.finished_error;
  }
  if (lives < usual_lives) return;
  // Of a life, on average.
  const auto least = [&](double number) { return static_cast<uint64_t>(number * usual_lives); };
  EXPECT_GT(totals.scheduler.preemptions, least(0.8)) << "or the lives prove nothing about them";
  EXPECT_GT(static_cast<uint64_t>(late_tokens), least(40));
  EXPECT_GT(totals.finished_stop, least(1.6));
  EXPECT_GT(totals.finished_length, least(1.6));
  EXPECT_GT(totals.finished_cancelled, least(0.4));
  EXPECT_GT(totals.finished_error, least(0.4));
}

// Or nothing above would be about it.
TEST_P(DeviceSamplingTest, TheBackendHasASamplerOfItsOwn) {
  const auto backend = MakeDeviceBackend(/*threads=*/1);
  ASSERT_TRUE(backend.ok()) << backend.status();
  const TokenSamplerLimits limits = {.slots = 4, .rows = 8, .vocabulary = kTableVocabulary};
  EXPECT_NE(*(*backend)->MakeTokenSampler(limits), nullptr);
  TokenSamplerLimits too_large = limits;
  too_large.vocabulary = (int64_t{1} << 20) + 1;
  EXPECT_EQ(*(*backend)->MakeTokenSampler(too_large), nullptr);
}

class DeviceSamplingGroupTest : public testing::TestWithParam<int> {};

TEST_P(DeviceSamplingGroupTest, ALostPeerEndsTheEngineAndWhatRunsInIt) {
  const auto backend = MakeDeviceBackend(/*threads=*/1);
  ASSERT_TRUE(backend.ok()) << backend.status();
  TableExecutor executor(**backend, /*ranks=*/GetParam(), /*steps_of_peers=*/5);
  Engine engine(
      {.scheduler = {.kv_blocks = 20, .context_length = kContext}, .vocabulary = kTableVocabulary},
      **backend, executor);
  const auto sink = std::make_shared<Collector>();
  EngineRequest request;
  request.sink = sink;
  request.client_id = 1;
  request.prompt = {1, 2};
  request.max_tokens = 50;
  request.sampling.temperature = 0;
  engine.Submit(request);
  const absl::Status status = engine.Run();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_GE(executor.late_tokens, 4) << "or none was under way";
  const Completion completion = sink->Now(1);
  EXPECT_EQ(completion.error, EndError::kDraining);
  EXPECT_GE(completion.tokens.size(), 4u);
}

std::vector<int> OfADevice(const std::vector<int>& ranks) {
  return DeviceBackendNames().empty() ? std::vector<int>() : ranks;
}

std::string Name(const testing::TestParamInfo<int>& test) {
  return "tp" + std::to_string(test.param);
}

INSTANTIATE_TEST_SUITE_P(Ranks, DeviceSamplingTest, testing::ValuesIn(OfADevice({1, 2, 4})), Name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DeviceSamplingTest);
INSTANTIATE_TEST_SUITE_P(Ranks, DeviceSamplingGroupTest, testing::ValuesIn(OfADevice({2, 4})),
                         Name);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DeviceSamplingGroupTest);

}  // namespace
}  // namespace marcoro
