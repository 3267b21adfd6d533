// Slots of the device's sampler: opened, going on by themselves, closed and opened for others, with
// the tokens of the worker's sampler. How a token is chosen is sampling_test.cc's.
#include "kernels/cuda/device_sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "worker/sampling/sampler.h"
#include "worker/sampling/token_rules.h"

namespace marcoro::cuda {
namespace {

constexpr int32_t kVocabulary = 77;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::unique_ptr<DeviceSampler> MakeSampler(const TokenSamplerLimits& limits) {
  auto sampler = DeviceSampler::Create(TestStream(), limits, [] { return absl::OkStatus(); });
  CheckDevice(sampler.status());
  return *std::move(sampler);
}

absl::Span<const TokenChoice> Take(DeviceSampler& sampler) {
  const auto choices = sampler.Take();
  CheckDevice(choices.status());
  return *choices;
}

struct Sequence {
  SamplingParams params;
  std::vector<TokenId> prompt;
  std::vector<TokenId> generated;
  int32_t slot = -1;

  // The worker's sampler, built anew: it must not matter that the device's went on by itself.
  absl::StatusOr<SampleResult> SampleOnHost(const Matrix& logits, int64_t row) const {
    const auto values = absl::MakeConstSpan(logits.view().Row<float>(row), kVocabulary);
    const DeviceMatrix device(logits);
    const DeviceArray<LogitSummary> summaries(static_cast<size_t>(logits.rows()));
    SummarizeLogits(TestStream(), device.view(), summaries.data());
    SamplingScratch scratch;
    return SequenceSampler(params, prompt, generated)
        .Sample(values, summaries.ToHost()[static_cast<size_t>(row)], &scratch);
  }
};

class RandomLife {
 public:
  explicit RandomLife(uint32_t seed) : random_(seed) {}

  bool Chance(double p) { return std::bernoulli_distribution(p)(random_); }
  uint32_t Seed() { return static_cast<uint32_t>(random_()); }
  template <typename T>
  T OneOf(std::initializer_list<T> values) {
    return values.begin()[random_() % values.size()];
  }
  std::vector<TokenId> Tokens(size_t most) {
    std::vector<TokenId> tokens(random_() % (most + 1));
    for (TokenId& token : tokens) token = static_cast<TokenId>(random_() % kVocabulary);
    return tokens;
  }
  Sequence RandomSequence() {
    Sequence sequence;
    SamplingParams& params = sequence.params;
    params.seed = random_();
    params.temperature = OneOf({0.0f, 0.7f, 1.0f, 2.0f});
    params.top_k = OneOf({0, 0, 3, 20});
    params.top_p = OneOf({1.0f, 1.0f, 0.8f});
    params.min_p = OneOf({0.0f, 0.0f, 0.1f});
    params.typical_p = OneOf({1.0f, 1.0f, 0.7f});
    params.repetition_penalty = OneOf({1.0f, 1.0f, 1.3f});
    params.frequency_penalty = OneOf({0.0f, 0.0f, 0.4f});
    if (Chance(0.3)) params.logit_bias = {{3, 2.5f}, {kVocabulary + 9, 1}};
    if (Chance(0.3)) params.allowed_token_ids = {1, 5, 6, 7, 8, 30, 31, 32, 63, 64, 76, 900};
    if (Chance(0.3)) params.bad_words = {{5}, {}, {6, 7}, {30, 31, 32, 1}};
    if (Chance(0.3)) params.end_token_ids = {6, 31};
    params.min_tokens = OneOf({0, 4});
    params.logprobs = OneOf({-1, 0, 3, 20});
    sequence.prompt = Tokens(12);
    sequence.prompt.push_back(kVocabulary + 2);  // such ids count for nothing
    sequence.generated = Tokens(5);
    return sequence;
  }

 private:
  std::mt19937_64 random_;
};

void ExpectSame(const absl::StatusOr<SampleResult>& host, const TokenChoice& device,
                int32_t logprobs) {
  if (!host.ok()) {
    EXPECT_EQ(device.status, SamplingStatus::kNothingIsAllowed) << host.status();
    return;
  }
  ASSERT_EQ(device.status, SamplingStatus::kOk);
  ASSERT_EQ(device.token, host->token);
  if (logprobs < 0) return;
  const TokenLogprob& expected = host->logprob;
  EXPECT_EQ(std::bit_cast<uint32_t>(device.logprob), std::bit_cast<uint32_t>(expected.logprob));
  ASSERT_EQ(device.alternatives.size(), expected.top.size());
  for (size_t i = 0; i < expected.top.size(); ++i) {
    EXPECT_EQ(device.alternatives[i].token, expected.top[i].token);
    EXPECT_EQ(std::bit_cast<uint32_t>(device.alternatives[i].logprob),
              std::bit_cast<uint32_t>(expected.top[i].logprob));
  }
}

// Sequences come and go, and share the slots.
TEST(DeviceSamplerTest, ReusedSlotsGiveTheTokensOfTheWorkersSampler) {
  constexpr int32_t kSlots = 5;
  RandomLife life(3);
  const auto sampler = MakeSampler({.slots = kSlots, .rows = 9, .vocabulary = kVocabulary});
  std::vector<Sequence> sequences;
  for (int step = 0; step < 40; ++step) {
    SCOPED_TRACE(::testing::Message() << "step " << step);
    while (sequences.size() < kSlots && life.Chance(0.7)) {
      Sequence sequence = life.RandomSequence();
      const auto slot =
          sampler->Open(RulesOf(sequence.params), sequence.prompt, sequence.generated);
      ASSERT_TRUE(slot.ok()) << slot.status();
      sequence.slot = *slot;
      sequences.push_back(std::move(sequence));
    }
    const int64_t rows = static_cast<int64_t>(sequences.size()) + 2;
    const Matrix logits = Matrix(DType::kF32, rows, kVocabulary).FillNormal(life.Seed(), 3);
    std::vector<int32_t> slots = {-1};
    for (const Sequence& sequence : sequences) slots.push_back(sequence.slot);
    slots.push_back(-1);
    const DeviceMatrix device(logits);
    sampler->Queue(device.view(), slots);
    const auto choices = Take(*sampler);
    ASSERT_EQ(choices.size(), slots.size());
    for (size_t i = sequences.size(); i-- > 0;) {
      Sequence& sequence = sequences[i];
      const auto host = sequence.SampleOnHost(logits, static_cast<int64_t>(i) + 1);
      ASSERT_NO_FATAL_FAILURE(ExpectSame(host, choices[i + 1], sequence.params.logprobs));
      if (host.ok()) sequence.generated.push_back(host->token);
      if (host.ok() && !life.Chance(0.15)) continue;
      sampler->Close(sequence.slot);
      sequences.erase(sequences.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
}

TEST(DeviceSamplerTest, ASecondStepMayBeQueuedBeforeTheFirstIsTaken) {
  RandomLife life(8);
  const auto sampler = MakeSampler({.slots = 2, .rows = 2, .vocabulary = kVocabulary});
  Sequence sequence = life.RandomSequence();
  sequence.params.repetition_penalty = 1.5f;  // the second token depends on the first
  sequence.slot = *sampler->Open(RulesOf(sequence.params), sequence.prompt, sequence.generated);
  const Matrix first = Matrix(DType::kF32, 2, kVocabulary).FillNormal(1, 2);
  const Matrix second = Matrix(DType::kF32, 1, kVocabulary).FillNormal(2, 2);
  const DeviceMatrix first_on_device(first);
  const DeviceMatrix second_on_device(second);
  sampler->Queue(first_on_device.view(), {-1, sequence.slot});
  sampler->Queue(second_on_device.view(), {sequence.slot});
  sampler->Close(sequence.slot);  // what is queued comes nevertheless
  const auto expected = sequence.SampleOnHost(first, 1);
  ExpectSame(expected, Take(*sampler)[1], sequence.params.logprobs);
  sequence.generated.push_back(expected->token);
  ExpectSame(sequence.SampleOnHost(second, 0), Take(*sampler)[0], sequence.params.logprobs);
}

TEST(DeviceSamplerTest, MoreSequencesThanSlotsAreRefusedUntilOneIsClosed) {
  const auto sampler = MakeSampler({.slots = 2, .rows = 2, .vocabulary = kVocabulary});
  const int32_t first = *sampler->Open({}, {1}, {});
  const int32_t second = *sampler->Open({}, {1}, {});
  EXPECT_NE(first, second);
  EXPECT_EQ(sampler->Open({}, {1}, {}).status().code(), absl::StatusCode::kResourceExhausted);
  sampler->Close(first);
  EXPECT_EQ(*sampler->Open({}, {1}, {}), first);
}

TEST(DeviceSamplerTest, WhatItCannotFollowIsRefusedAndTakesNoSlot) {
  const auto sampler = MakeSampler({.slots = 1, .rows = 1, .vocabulary = kVocabulary});
  SamplingParams many_alternatives;
  many_alternatives.logprobs = 21;
  SamplingParams twice;  // (logit + a) + b is not logit + (a + b)
  twice.logit_bias = {{4, 0.5f}, {4, 0.25f}};
  SamplingParams infinite;
  infinite.logit_bias = {{4, kInfinity}};
  SamplingParams long_words;
  long_words.bad_words.assign(1 << 16, {1, 2});
  for (const SamplingParams& params : {many_alternatives, twice, infinite, long_words}) {
    EXPECT_EQ(sampler->Open(RulesOf(params), {1}, {}).status().code(),
              absl::StatusCode::kUnimplemented);
  }
  EXPECT_TRUE(sampler->Open({}, {1}, {}).ok());
}

TEST(DeviceSamplerTest, EachReasonForNoTokenIsTold) {
  const auto sampler = MakeSampler({.slots = 4, .rows = 4, .vocabulary = kVocabulary});
  SamplingParams greedy;
  greedy.temperature = 0;
  SamplingParams nothing;
  nothing.allowed_token_ids = {7};
  nothing.bad_words = {{7}};
  SamplingParams infinite;
  infinite.repetition_penalty = 1e-38f;
  std::vector<int32_t> slots;
  for (const SamplingParams& params : {greedy, greedy, nothing, infinite}) {
    slots.push_back(*sampler->Open(RulesOf(params), {3}, {}));
  }
  Matrix logits = Matrix(DType::kF32, 4, kVocabulary).FillNormal(1);
  logits.Set(0, 40, std::numeric_limits<float>::quiet_NaN());
  logits.Set(1, 40, kInfinity);
  logits.Set(3, 3, 100);
  const DeviceMatrix device(logits);
  sampler->Queue(device.view(), slots);
  std::vector<SamplingStatus> statuses;
  for (const TokenChoice& choice : Take(*sampler)) statuses.push_back(choice.status);
  EXPECT_THAT(statuses, ::testing::ElementsAre(SamplingStatus::kLogitsAreNotNumbers,
                                               SamplingStatus::kLargestIsNotFinite,
                                               SamplingStatus::kNothingIsAllowed,
                                               SamplingStatus::kAdjustmentsAreInfinite));
}

TEST(DeviceSamplerTest, LateIdsAreWhatSlotsChoseLastAndSuppliedOnce) {
  const auto sampler = MakeSampler({.slots = 3, .rows = 3, .vocabulary = kVocabulary});
  SamplingParams greedy;
  greedy.temperature = 0;
  std::vector<int32_t> slots;
  for (int i = 0; i < 3; ++i) slots.push_back(*sampler->Open(RulesOf(greedy), {3}, {}));
  Matrix logits(DType::kF32, 3, kVocabulary);
  logits.FillRow(2, std::numeric_limits<float>::quiet_NaN());
  for (const int64_t row : {0, 1}) {
    logits.FillRow(row, 0);
    logits.Set(row, 41 + row, 1);
  }
  const DeviceMatrix device(logits);
  sampler->Queue(device.view(), slots);

  DeviceArray<int32_t> ids(5);
  ids.CopyFrom({7, 7, 7, 7, 7});
  sampler->SupplyIds(
      {{.row = 3, .slot = slots[0]}, {.row = 0, .slot = slots[1]}, {.row = 4, .slot = slots[2]}});
  const auto late_ids = sampler->late_ids().lock();
  CheckDevice(late_ids->Write(TestStream(), ids.data(), 5));
  EXPECT_THAT(ids.ToHost(), ::testing::ElementsAre(42, 7, 7, 41, 0)) << "0: nothing was chosen";
  ids.CopyFrom({7, 7, 7, 7, 7});
  CheckDevice(late_ids->Write(TestStream(), ids.data(), 5));
  EXPECT_THAT(ids.ToHost(), ::testing::Each(7));
}

TEST(DeviceSamplerTest, AFailureOfEarlierOpsIsToldWithTheTokens) {
  auto sampler =
      *DeviceSampler::Create(TestStream(), {.slots = 1, .rows = 1, .vocabulary = kVocabulary},
                             [] { return absl::ResourceExhaustedError("no memory for the step"); });
  const int32_t slot = *sampler->Open({}, {1}, {});
  const DeviceMatrix logits(Matrix(DType::kF32, 1, kVocabulary).FillNormal(1));
  sampler->Queue(logits.view(), {slot});
  EXPECT_EQ(sampler->Take().status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace marcoro::cuda
