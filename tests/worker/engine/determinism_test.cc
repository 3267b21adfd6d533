// A token never changes: whatever surrounds a request, its tokens and log-probabilities are bit for
// bit those of a lone request on one rank. MARCORO_TEST_SEED replays a failing mix,
// MARCORO_TEST_MIXES runs more of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "tests/kernels/cuda/device_backends.h"
#include "tests/worker/engine/test_group.h"

namespace marcoro {
namespace {

int FromEnvironment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

// How much a mix asks of a machine.
struct Load {
  int mixes;
  int requests;
  int own_tokens;  // most of a prompt that no other has
  int max_tokens;  // most to generate
};
constexpr Load kProcessor = {.mixes = 3, .requests = 16, .own_tokens = 70, .max_tokens = 40};
constexpr Load kEmulator = {.mixes = 3, .requests = 8, .own_tokens = 40, .max_tokens = 12};

class Mix {
 public:
  Mix(uint64_t seed, const Load& load) : random_(seed), load_(load) {}

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool Chance(double probability) { return std::bernoulli_distribution(probability)(random_); }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[Draw(0, static_cast<int>(values.size()) - 1)];
  }

  // Some prompts begin alike, so that the prefix cache has something to find.
  std::vector<EngineRequest> Requests(int vocabulary) {
    std::vector<TokenId> shared;
    for (int i = 0; i < 80; ++i) shared.push_back(Draw(3, vocabulary - 1));
    std::vector<EngineRequest> requests;
    for (int i = 0; i < load_.requests; ++i) requests.push_back(Request(shared, vocabulary));
    return requests;
  }

  // Pools from barely enough for one sequence to ample, budgets from a few tokens to the whole
  // prompt.
  SchedulerOptions Scheduler() {
    return {.kv_blocks = Pick({14, 20, 40, 200}),
            .context_length = 256,
            .max_sequences_per_step = Pick({2, 5, 32}),
            .max_tokens_per_step = Pick({7, 32, 100, 256}),
            .max_logit_rows_per_step = Pick({7, 32}),
            .prefix_cache = Chance(0.7)};
  }

 private:
  EngineRequest Request(const std::vector<TokenId>& shared, int vocabulary) {
    EngineRequest request;
    if (Chance(0.5))
      request.prompt.assign(shared.begin(),
                            shared.begin() + Draw(1, static_cast<int>(shared.size())));
    for (int own = Draw(1, load_.own_tokens); own > 0; --own)
      request.prompt.push_back(Draw(3, vocabulary - 1));
    request.max_tokens = Draw(1, load_.max_tokens);
    request.priority = Draw(-1, 1);
    if (Chance(0.2)) request.prompt_logprobs = Draw(0, 3);
    SamplingParams& sampling = request.sampling;
    sampling.seed = static_cast<uint64_t>(Draw(0, 1 << 30));
    sampling.temperature = Pick({0.0f, 0.7f, 1.0f, 1.5f});
    sampling.top_k = Pick({0, 0, 5, 50});
    sampling.top_p = Pick({1.0f, 0.9f, 0.5f});
    sampling.min_p = Pick({0.0f, 0.0f, 0.05f});
    sampling.repetition_penalty = Pick({1.0f, 1.0f, 1.2f});
    sampling.frequency_penalty = Pick({0.0f, 0.3f});
    sampling.logprobs = Draw(-1, 4);
    return request;
  }

  std::mt19937_64 random_;
  const Load load_;
};

// Submits all requests, in waves that begin once an earlier request is under way, some of them as a
// failover would: with the first tokens generated elsewhere.
std::vector<Completion> RunMix(Mix& mix, TestGroup& group,
                               const std::vector<EngineRequest>& requests,
                               const std::vector<Completion>& lone) {
  std::vector<uint64_t> ids(requests.size());
  std::vector<size_t> replayed(requests.size(), 0);
  for (size_t i = 0; i < requests.size(); ++i) {
    EngineRequest request = requests[i];
    const size_t generated = lone[i].tokens.size();
    if (request.prompt_logprobs < 0 && generated > 1 && mix.Chance(0.25)) {
      replayed[i] = static_cast<size_t>(mix.Draw(1, static_cast<int>(generated) - 1));
      request.generated.assign(lone[i].tokens.begin(),
                               lone[i].tokens.begin() + static_cast<ptrdiff_t>(replayed[i]));
    }
    ids[i] = group.Submit(std::move(request));
    if (i > 0 && mix.Chance(0.3)) {
      group.collector()->AwaitTokens(ids[static_cast<size_t>(mix.Draw(0, static_cast<int>(i)))],
                                     static_cast<size_t>(mix.Draw(1, 10)));
    }
  }
  std::vector<Completion> completions;
  for (size_t i = 0; i < requests.size(); ++i) {
    Completion completion = group.collector()->Await(ids[i]);
    if (replayed[i] > 0) {  // what was generated elsewhere is not reported again
      const int per_token =
          requests[i].sampling.logprobs < 0 ? 0 : 1 + 2 * requests[i].sampling.logprobs;
      const auto count = static_cast<ptrdiff_t>(replayed[i]);
      completion.tokens.insert(completion.tokens.begin(), lone[i].tokens.begin(),
                               lone[i].tokens.begin() + count);
      completion.logprobs.insert(completion.logprobs.begin(), lone[i].logprobs.begin(),
                                 lone[i].logprobs.begin() + count * per_token);
    }
    completions.push_back(std::move(completion));
  }
  return completions;
}

struct Case {
  std::string backend;
  int world_size;
  DType activations = DType::kBF16;
  KvFormat kv = KvFormat::kActivation;
};

class DeterminismTest : public testing::TestWithParam<Case> {};

TEST_P(DeterminismTest, AnyMixGivesTheBitsOfALoneRequestOnOneRank) {
  const std::string& backend = GetParam().backend;
  const bool emulated = backend == "cuda" && DeviceIsEmulated();
  const Load& load = emulated ? kEmulator : kProcessor;
  const std::string checkpoint = emulated ? "tiny" : "small";
  const int first_seed = FromEnvironment("MARCORO_TEST_SEED", 1);
  const int mixes = FromEnvironment("MARCORO_TEST_MIXES", load.mixes);
  for (int seed = first_seed; seed < first_seed + mixes; ++seed) {
    SCOPED_TRACE("MARCORO_TEST_SEED=" + std::to_string(seed));
    Mix mix(static_cast<uint64_t>(seed), load);
    TestGroup alone({.checkpoint = checkpoint,
                     .backend = backend,
                     .activations = GetParam().activations,
                     .kv = GetParam().kv,
                     .scheduler = {.kv_blocks = 64, .context_length = 256, .prefix_cache = false}});
    const std::vector<EngineRequest> requests = mix.Requests(alone.vocabulary_size());
    std::vector<Completion> lone;
    for (const EngineRequest& request : requests) lone.push_back(alone.Run(request));

    TestGroup group({.checkpoint = checkpoint,
                     .backend = backend,
                     .world_size = GetParam().world_size,
                     .activations = GetParam().activations,
                     .kv = GetParam().kv,
                     .scheduler = mix.Scheduler()});
    const std::vector<Completion> mixed = RunMix(mix, group, requests, lone);
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_EQ(lone[i].end, EndReason::kLength) << lone[i].detail;
      ASSERT_EQ(mixed[i].end, EndReason::kLength) << mixed[i].detail;
      EXPECT_EQ(mixed[i].tokens, lone[i].tokens) << "request " << i;
      EXPECT_TRUE(mixed[i] == lone[i]) << "request " << i << ": log-probabilities differ";
    }
  }
}

std::vector<Case> Cases() {
  constexpr DType kBf16 = DType::kBF16;
  constexpr DType kQuantized = DType::kF8E4M3;
  constexpr KvFormat kPlain = KvFormat::kActivation;
  std::vector<Case> cases;
  for (const int ranks : {1, 2, 4, 8}) {
    cases.push_back({"auto", ranks, kBf16, kPlain});
    cases.push_back({"auto", ranks, kQuantized, kPlain});
    cases.push_back({"auto", ranks, kBf16, KvFormat::kFp8});
  }
  if (!DeviceRunsModels()) return cases;
  for (const std::string& name : DeviceBackendNames()) {
    cases.push_back({name, 1, kBf16, kPlain});
    cases.push_back({name, 2, kBf16, kPlain});
    cases.push_back({name, 2, kQuantized, KvFormat::kFp8});
    // More than the emulator's model has KV heads for.
    if (!DeviceIsEmulated()) cases.push_back({name, 4, kBf16, kPlain});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Ranks, DeterminismTest, testing::ValuesIn(Cases()), [](const auto& test) {
  const std::string degree =
      "tp" + std::to_string(test.param.world_size) +
      (test.param.activations == DType::kF8E4M3 ? "_quantized_activations" : "") +
      (test.param.kv == KvFormat::kFp8 ? "_kv_fp8" : "");
  return test.param.backend == "auto" ? degree : test.param.backend + "_" + degree;
});

// The property test above must be able to see preemption and cache hits, or it would prove nothing
// about them.
TEST(EngineTest, ASmallPoolPreemptsAndASharedPrefixIsFound) {
  TestGroup group({.scheduler = {.kv_blocks = 14, .context_length = 200}});
  EngineRequest request;
  for (int i = 0; i < 60; ++i) request.prompt.push_back(3 + i);
  request.max_tokens = 60;
  request.sampling.temperature = 0;
  const Completion first = group.Run(request);
  EXPECT_EQ(first.cached_tokens, 0);
  const Completion second = group.Run(request);
  EXPECT_EQ(second.cached_tokens, 48)
      << "three whole blocks of the prompt, its last token always recomputed";
  EXPECT_EQ(first.tokens, second.tokens);
  std::vector<uint64_t> ids;
  for (int i = 0; i < 4; ++i) {
    request.prompt[0] = 100 + i;
    ids.push_back(group.Submit(request));
  }
  for (const uint64_t id : ids) group.collector()->Await(id);
  EXPECT_GT(group.engine().snapshot().scheduler.preemptions, 0);
}

}  // namespace
}  // namespace marcoro
