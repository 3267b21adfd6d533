// The device's sampling against the worker's: the same tokens and log-probabilities for the same
// logits.
#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/cuda/sampled_sequence.h"
#include "tests/worker/sampling/sampling_cases.h"
#include "worker/sampling/philox.h"
#include "worker/sampling/token_weights.h"

namespace marcoro::cuda {
namespace {

using nlohmann::json;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Step {
  std::vector<LogitSummary> summaries;
  std::vector<SampledToken> tokens;
};

// The device's side of sequences: row r of logits is of sequence r.
class DeviceSampler {
 public:
  explicit DeviceSampler(const std::vector<TestSequence>& sequences)
      : sequences_(sequences.size()), slots_(sequences.size()) {
    std::vector<SampledSequence> states;
    for (const TestSequence& sequence : sequences) states.push_back(sequence.device());
    sequences_.CopyFrom(states);
    for (size_t r = 0; r < sequences.size(); ++r) slot_values_.push_back(static_cast<int>(r));
  }

  void SetSlots(std::vector<int32_t> slots) { slot_values_ = std::move(slots); }

  Step Sample(const Matrix& logits) {
    const auto rows = static_cast<size_t>(logits.rows());
    const DeviceMatrix device(logits);
    const DeviceArray<LogitSummary> summaries(rows);
    const DeviceArray<SampledToken> tokens(rows);
    const DeviceArray<uint8_t> scratch(SampleScratchBytes(logits.rows(), logits.columns()));
    slots_.CopyFrom(slot_values_);
    SummarizeLogits(TestStream(), device.view(), summaries.data());
    cuda::Sample(TestStream(), device.view(), summaries.data(), slots_.data(), sequences_.data(),
                 tokens.data(), scratch.data());
    return {summaries.ToHost(), tokens.ToHost()};
  }

  std::vector<SampledSequence> States() const { return sequences_.ToHost(); }

 private:
  DeviceArray<SampledSequence> sequences_;
  DeviceArray<int32_t> slots_;
  std::vector<int32_t> slot_values_;
};

absl::Span<const float> RowOf(const Matrix& logits, int64_t row) {
  return {logits.view().Row<float>(row), static_cast<size_t>(logits.columns())};
}

bool SameBits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

void ExpectSame(const absl::StatusOr<SampleResult>& host, const SampledToken& device,
                const SamplingParams& params) {
  if (!host.ok()) {
    EXPECT_EQ(device.token, -1);
    const bool forbidden = host.status().code() == absl::StatusCode::kInvalidArgument;
    EXPECT_EQ(device.status == SamplingStatus::kNothingIsAllowed, forbidden);
    EXPECT_NE(device.status, SamplingStatus::kOk);
    return;
  }
  ASSERT_EQ(device.status, SamplingStatus::kOk);
  ASSERT_EQ(device.token, host->token);
  if (params.logprobs < 0) return;
  EXPECT_TRUE(SameBits(device.logprob, host->logprob.logprob));
  ASSERT_EQ(device.alternative_count, static_cast<int32_t>(host->logprob.top.size()));
  for (size_t i = 0; i < host->logprob.top.size(); ++i) {
    EXPECT_EQ(device.alternatives[i].token, host->logprob.top[i].token) << i;
    EXPECT_TRUE(SameBits(device.alternatives[i].logprob, host->logprob.top[i].logprob)) << i;
  }
}

// Samples on both sides, compares, and lets the host's sequences go on.
void ExpectSameStep(std::vector<TestSequence>& sequences, DeviceSampler& device,
                    const Matrix& logits) {
  const Step step = device.Sample(logits);
  SamplingScratch scratch;
  for (size_t r = 0; r < sequences.size(); ++r) {
    SCOPED_TRACE(::testing::Message() << "row " << r);
    SequenceSampler& host = sequences[r].host();
    const auto expected =
        host.Sample(RowOf(logits, static_cast<int64_t>(r)), step.summaries[r], &scratch);
    ASSERT_NO_FATAL_FAILURE(ExpectSame(expected, step.tokens[r], sequences[r].params()));
    if (expected.ok()) host.Append(expected->token);
  }
}

class RandomCases {
 public:
  explicit RandomCases(uint32_t seed) : random_(seed) {}

  template <typename T>
  T OneOf(const std::vector<T>& values) {
    return values[random_() % values.size()];
  }
  bool Chance(double p) { return std::bernoulli_distribution(p)(random_); }
  TokenId Token(int32_t vocabulary) { return static_cast<TokenId>(random_() % vocabulary); }
  std::vector<TokenId> Tokens(size_t most, int32_t vocabulary) {
    std::vector<TokenId> tokens(random_() % (most + 1));
    for (TokenId& token : tokens) token = Token(vocabulary);
    return tokens;
  }

  SamplingParams Params(int32_t vocabulary);
  // Of every kind: smooth, with ties, all equal, with one that leads, with masked ones.
  void FillRow(Matrix& logits, int64_t row);

 private:
  std::mt19937 random_;
};

SamplingParams RandomCases::Params(int32_t vocabulary) {
  SamplingParams params;
  params.seed = random_() * uint64_t{0x100000001} + random_();
  params.temperature = OneOf<float>({0, 1, 1, 0.7f, 0.1f, 1.5f, 40.0f, 1e-3f, 1e-40f, 3e38f});
  if (Chance(0.4)) {
    params.top_k = OneOf<int32_t>({1, 2, 5, 20, 50, vocabulary - 1, vocabulary, vocabulary + 9});
  }
  if (Chance(0.4)) params.top_p = OneOf<float>({0, 0.1f, 0.5f, 0.9f, 0.95f, 0.9999f});
  if (Chance(0.2)) params.min_p = OneOf<float>({1e-9f, 0.01f, 0.1f, 0.9f, 1});
  if (Chance(0.3)) params.typical_p = OneOf<float>({0, 0.1f, 0.5f, 0.9f, 0.999f});
  if (Chance(0.3)) params.repetition_penalty = OneOf<float>({0.5f, 1.1f, 1.3f, 2});
  if (Chance(0.2)) params.presence_penalty = OneOf<float>({-0.5f, 0.3f, 2});
  if (Chance(0.2)) params.frequency_penalty = OneOf<float>({-0.3f, 0.1f, 1});
  if (Chance(0.2)) {
    params.logit_bias = {{0, 1.5f}, {vocabulary / 2 + 1, -100}, {vocabulary + 3, 5}};
  }
  if (Chance(0.1)) params.allowed_token_ids = Tokens(40, vocabulary + 2);
  if (Chance(0.2)) {
    params.end_token_ids = Tokens(3, vocabulary);
    params.min_tokens = OneOf<int32_t>({1, 2, 30});
  }
  if (Chance(0.2)) {
    const TokenId a = Token(vocabulary);
    params.bad_words = {{a}, {a, Token(vocabulary)}, {Token(vocabulary), a, a}};
  }
  if (Chance(0.5)) params.logprobs = OneOf<int32_t>({0, 1, 5, 20});
  return params;
}

void RandomCases::FillRow(Matrix& logits, int64_t row) {
  std::normal_distribution<float> normal(0, OneOf<float>({0.1f, 1, 3, 8}));
  const float step = OneOf<float>({0, 0, 0.125f, 1, 100});  // 0: any value
  const bool masks = Chance(0.2);
  for (int64_t i = 0; i < logits.columns(); ++i) {
    float logit = normal(random_);
    if (step > 0) logit = std::round(logit / step) * step;
    if (masks && random_() % 4 == 0) logit = -kInfinity;
    logits.Set(row, i, logit);
  }
  const TokenId leader = Token(static_cast<int32_t>(logits.columns()));
  if (masks || Chance(0.2)) logits.Set(row, leader, 9.5f);
  if (Chance(0.02)) logits.Set(row, leader, OneOf<float>({NAN, kInfinity, -kInfinity}));
  if (Chance(0.02)) logits.FillRow(row, -kInfinity);
}

struct Batch {
  int32_t vocabulary;
  int rows;
  int steps;
};

void ExpectSameTokens(const Batch& batch, uint32_t seed) {
  RandomCases cases(seed);
  std::vector<TestSequence> sequences;
  for (int r = 0; r < batch.rows; ++r) {
    sequences.emplace_back(cases.Params(batch.vocabulary), cases.Tokens(20, batch.vocabulary),
                           cases.Tokens(20, batch.vocabulary), batch.vocabulary);
  }
  DeviceSampler device(sequences);
  for (int step = 0; step < batch.steps; ++step) {
    SCOPED_TRACE(::testing::Message() << "vocabulary " << batch.vocabulary << ", step " << step);
    Matrix logits(DType::kF32, batch.rows, batch.vocabulary, static_cast<int64_t>(seed % 2));
    for (int64_t r = 0; r < batch.rows; ++r) cases.FillRow(logits, r);
    ASSERT_NO_FATAL_FAILURE(ExpectSameStep(sequences, device, logits));
  }
}

TEST(CudaSamplingTest, TheTokensOfTheWorkersSampler) {
  uint32_t seed = 1;
  for (const int32_t vocabulary : {2, 3, 31, 64, 129, 517, 1000, 3001}) {
    for (int i = 0; i < 2; ++i) {
      ASSERT_NO_FATAL_FAILURE(
          ExpectSameTokens({.vocabulary = vocabulary, .rows = 64, .steps = 3}, seed++));
    }
  }
}

TEST(CudaSamplingTest, LargeVocabularies) {
  ASSERT_NO_FATAL_FAILURE(ExpectSameTokens({.vocabulary = 8193, .rows = 16, .steps = 2}, 100));
  ASSERT_NO_FATAL_FAILURE(ExpectSameTokens({.vocabulary = 32000, .rows = 24, .steps = 1}, 101));
  ASSERT_NO_FATAL_FAILURE(ExpectSameTokens({.vocabulary = 152064, .rows = 4, .steps = 1}, 102));
}

// A seed whose first draw takes the last token that has any weight to speak of.
uint64_t SeedOfALastDraw() {
  uint64_t best = 0;
  for (uint64_t seed = 1; seed < 1u << 20; ++seed) {
    if (UniformDraw(seed, 0) > UniformDraw(best, 0)) best = seed;
  }
  return best;
}

// A weight w of two tokens' second is what it must be, to the last unit, if min_p = w / 2^30 keeps
// it and min_p = (w + 1) / 2^30 does not.
TEST(CudaSamplingTest, WeightsAreThoseOfTheWorkerToTheLastUnit) {
  constexpr int kRows = 800;                               // of each of the two
  constexpr uint32_t kLeast = 1u << 22, kMost = 1u << 24;  // all bits count, and exact as a float
  const uint64_t seed = SeedOfALastDraw();
  Matrix logits(DType::kF32, 2 * kRows, 2);
  std::vector<TestSequence> sequences;
  std::mt19937 random(1);
  std::uniform_real_distribution<float> distance(4.17f, 4.85f);
  for (int r = 0; r < 2 * kRows; ++r) {
    logits.Set(r, 0, 0);
    logits.Set(r, 1, r % 2 == 0 ? -distance(random) : logits.At(r - 1, 1));
    float exponents[2];
    uint32_t weights[2];
    WeighTokens(RowOf(logits, r), 0, 1, absl::MakeSpan(exponents), absl::MakeSpan(weights));
    ASSERT_GT(weights[1], kLeast);
    ASSERT_LT(weights[1], kMost);
    const uint32_t least = weights[1] + static_cast<uint32_t>(r % 2);
    const SamplingParams params = {.seed = seed, .min_p = static_cast<float>(least) * 0x1p-30f};
    sequences.emplace_back(params, std::vector<TokenId>{}, std::vector<TokenId>{}, 2);
  }
  const Step step = DeviceSampler(sequences).Sample(logits);
  for (int r = 0; r < 2 * kRows; ++r) {
    EXPECT_EQ(step.tokens[r].token, r % 2 == 0 ? 1 : 0) << "logit " << logits.At(r, 1);
  }
}

// More equal logits than are ranked one by one: ids decide.
TEST(CudaSamplingTest, ManyEqualLogits) {
  constexpr int32_t kVocabulary = 12000;
  Matrix logits(DType::kF32, 1, kVocabulary);
  for (int32_t i = 0; i < kVocabulary; ++i) logits.Set(0, i, i % 3 == 0 ? 0.25f : -0.0f);
  for (const int32_t top_k : {1, 700, 4000, 4001, 9000}) {
    for (const float p : {1.0f, 0.7f, 0.2f}) {
      SCOPED_TRACE(::testing::Message() << "top_k " << top_k << ", p " << p);
      const SamplingParams params = {
          .seed = 5, .top_k = top_k, .top_p = p, .typical_p = p, .logprobs = 20};
      std::vector<TestSequence> sequences;
      sequences.emplace_back(params, std::vector<TokenId>{}, std::vector<TokenId>{}, kVocabulary);
      DeviceSampler device(sequences);
      ASSERT_NO_FATAL_FAILURE(ExpectSameStep(sequences, device, logits));
    }
  }
}

// How often each token is drawn under many seeds, against the distributions that Hugging Face
// transformers' logits processors leave (tests/data/sampling_cases.json).
TEST(CudaSamplingTest, DrawsFromTheDistributionOfTheReference) {
  constexpr int kDraws = 128;
  std::ifstream file(std::string(MARCORO_TEST_DATA) + "/sampling_cases.json");
  const json cases = json::parse(file)["cases"];
  ASSERT_EQ(cases.size(), 42u);
  for (size_t c = 0; c < cases.size(); ++c) {
    SCOPED_TRACE(std::to_string(c) + ": " + cases[c]["params"].dump());
    const auto prompt = cases[c]["prompt_ids"].get<std::vector<TokenId>>();
    const auto generated = cases[c]["generated_ids"].get<std::vector<TokenId>>();
    const auto values = cases[c]["logits"].get<std::vector<float>>();
    const auto probabilities = cases[c]["probabilities"].get<std::vector<double>>();
    const auto vocabulary = static_cast<int32_t>(values.size());
    SamplingParams params = ParseParams(cases[c]["params"]);
    Matrix logits(DType::kF32, kDraws, vocabulary);
    std::vector<TestSequence> sequences;
    for (int r = 0; r < kDraws; ++r) {
      params.seed = static_cast<uint64_t>(r);
      sequences.emplace_back(params, prompt, generated, vocabulary);
      for (int32_t i = 0; i < vocabulary; ++i) logits.Set(r, i, values[i]);
    }
    std::vector<int> drawn(values.size());
    for (const SampledToken& token : DeviceSampler(sequences).Sample(logits).tokens) {
      ASSERT_EQ(token.status, SamplingStatus::kOk);
      ++drawn[token.token];
    }
    for (size_t i = 0; i < drawn.size(); ++i) {
      const double p = probabilities[i];
      const double deviation = std::sqrt(kDraws * p * (1 - p));
      EXPECT_NEAR(drawn[i], kDraws * p, p == 0 ? 0 : 5 * deviation + 1) << "token " << i;
    }
  }
}

TEST(CudaSamplingTest, WhatIsRememberedIsWhatARebuiltSequenceKnows) {
  constexpr int32_t kVocabulary = 100;
  SamplingParams params;
  params.seed = 42;
  params.repetition_penalty = 1.2f;
  params.frequency_penalty = 0.1f;
  params.bad_words = {{4, 5}, {6, 7, 8, 9}};
  params.end_token_ids = {2};
  params.min_tokens = 7;
  const std::vector<TokenId> prompt = {1, 4};
  std::vector<TestSequence> sequences;
  sequences.emplace_back(params, prompt, std::vector<TokenId>{}, kVocabulary);
  DeviceSampler device(sequences);
  std::vector<TokenId> generated;
  for (uint32_t step = 0; step < 10; ++step) {
    const Matrix logits = Matrix(DType::kF32, 1, kVocabulary).FillNormal(step, 2);
    generated.push_back(device.Sample(logits).tokens[0].token);
    const TestSequence rebuilt(params, prompt, generated, kVocabulary);
    const SampledSequence state = device.States()[0];
    EXPECT_EQ(state.generated, rebuilt.device().generated);
    EXPECT_EQ(sequences[0].Counts(), rebuilt.Counts());
    ASSERT_EQ(state.tail_length, rebuilt.device().tail_length);
    const std::vector<int32_t> tail = sequences[0].Tail();
    const std::vector<int32_t> expected = rebuilt.Tail();
    EXPECT_TRUE(std::equal(tail.begin(), tail.begin() + state.tail_length, expected.begin()));
  }
}

TEST(CudaSamplingTest, AFailureIsOfItsRowAndLeavesTheSequenceAsItWas) {
  constexpr int32_t kVocabulary = 50;
  SamplingParams nothing;
  nothing.allowed_token_ids = {7};
  nothing.bad_words = {{7}};
  SamplingParams infinite;
  infinite.repetition_penalty = 1e-38f;
  SamplingParams greedy;
  greedy.temperature = 0;
  std::vector<TestSequence> sequences;
  for (const SamplingParams& params : {greedy, nothing, infinite, greedy}) {
    sequences.emplace_back(params, std::vector<TokenId>{3}, std::vector<TokenId>{}, kVocabulary);
  }
  Matrix logits = Matrix(DType::kF32, 4, kVocabulary).FillNormal(1);
  logits.Set(0, 49, NAN);
  logits.Set(2, 3, 100);
  DeviceSampler device(sequences);
  const Step step = device.Sample(logits);
  EXPECT_EQ(step.tokens[0].status, SamplingStatus::kLogitsAreNotNumbers);
  EXPECT_EQ(step.tokens[1].status, SamplingStatus::kNothingIsAllowed);
  EXPECT_EQ(step.tokens[2].status, SamplingStatus::kAdjustmentsAreInfinite);
  EXPECT_EQ(step.tokens[3].status, SamplingStatus::kOk);
  for (size_t r = 0; r < 4; ++r) EXPECT_EQ(device.States()[r].generated, r == 3 ? 1 : 0);
}

// Row r of the logits in another place, with padding between, under other orders of threads.
TEST(CudaSamplingTest, ATokenDependsNeitherOnCompanyNorOnTheOrderOfThreads) {
  constexpr int32_t kVocabulary = 700;
  const auto make = [&] {
    RandomCases cases(77);
    std::vector<TestSequence> sequences;
    for (int r = 0; r < 12; ++r) {
      sequences.emplace_back(cases.Params(kVocabulary), cases.Tokens(9, kVocabulary),
                             cases.Tokens(9, kVocabulary), kVocabulary);
    }
    return sequences;
  };
  const Matrix logits = Matrix(DType::kF32, 12, kVocabulary).FillNormal(5, 2);
  const std::vector<TestSequence> first = make();
  const Step expected = DeviceSampler(first).Sample(logits);
  Matrix moved(DType::kF32, 12, kVocabulary, 3);
  moved.FillRow(0, 1);
  moved.FillRow(11, 2);
  for (int64_t r = 0; r < 10; ++r) moved.CopyRow(10 - r, logits, r);
  InSeveralThreadOrders([&] {
    const std::vector<TestSequence> sequences = make();
    DeviceSampler device(sequences);
    device.SetSlots({-1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, -1});
    const Step step = device.Sample(moved);
    for (size_t r = 0; r < 10; ++r) {
      const SampledToken& token = step.tokens[10 - r];
      EXPECT_EQ(token.token, expected.tokens[r].token);
      EXPECT_TRUE(SameBits(token.logprob, expected.tokens[r].logprob));
    }
    EXPECT_EQ(device.States()[10].generated, first[10].device().generated) << "not sampled";
  });
}

}  // namespace
}  // namespace marcoro::cuda
