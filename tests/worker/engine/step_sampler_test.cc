// Who chooses which token: a backend's sampler, of which the test is the judge, or the processor,
// for which token 2 of every row is the likeliest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/token_sampler.h"
#include "spdlog/sinks/ringbuffer_sink.h"
#include "spdlog/spdlog.h"
#include "worker/engine/device_step_sampler.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kVocabulary = 4;
constexpr TokenId kLikeliest = 2;
constexpr TokenId kOfSlot = 100;  // + slot: what the fake chooses

class FakeSampler final : public TokenSampler {
 public:
  struct Opened {
    std::vector<TokenId> prompt, generated;
  };

  explicit FakeSampler(int slots) : opened(slots), is_open(slots) {}

  absl::StatusOr<int32_t> Open(const TokenRules& rules, absl::Span<const int32_t> prompt,
                               absl::Span<const int32_t> generated) override {
    if (rules.top_k == 7) return absl::UnimplementedError("no seven");
    for (size_t slot = 0; slot < is_open.size(); ++slot) {
      if (is_open[slot]) continue;
      is_open[slot] = true;
      opened[slot] = {{prompt.begin(), prompt.end()}, {generated.begin(), generated.end()}};
      return static_cast<int32_t>(slot);
    }
    return absl::ResourceExhaustedError("all taken");
  }
  void Close(int32_t slot) override { is_open[slot] = false; }
  void Queue(const Tensor&, absl::Span<const int32_t> slots) override {
    queued.emplace_back(slots.begin(), slots.end());
  }
  void SupplyIds(absl::Span<const LateId> late) override {
    for (const LateId& id : late) supplied.emplace_back(id.row, id.slot);
  }
  absl::StatusOr<absl::Span<const TokenChoice>> Take() override {
    choices_.clear();
    for (const int32_t slot : queued.front()) choices_.push_back({.token = kOfSlot + slot});
    queued.erase(queued.begin());
    return absl::MakeConstSpan(choices_);
  }

  std::vector<Opened> opened;  // by slot
  std::vector<bool> is_open;
  std::vector<std::vector<int32_t>> queued;
  std::vector<std::pair<int32_t, int32_t>> supplied;

 private:
  std::vector<TokenChoice> choices_;
};

class StepSamplerTest : public ::testing::Test {
 protected:
  StepSamplerTest() : backend_(*CreateBackend({.name = "reference"})) { Create(/*slots=*/2); }

  void Create(int slots) {
    auto fake = std::make_unique<FakeSampler>(slots);
    fake_ = fake.get();
    sampler_ = std::make_unique<DeviceStepSampler>(*backend_, std::move(fake), slots);
  }
  static EngineRequest Greedy() {
    EngineRequest request;
    request.prompt = {1, 3, 0};
    request.sampling.temperature = 0;
    return request;
  }
  // The tokens of a step with one row for each of the sequences.
  std::vector<TokenId> Sample(const std::vector<SequenceId>& ids) {
    std::vector<SampleJob> jobs;
    for (const SequenceId id : ids) {
      jobs.push_back(
          {.id = id, .first_row = static_cast<int64_t>(jobs.size()), .rows = 1, .samples = true});
    }
    std::vector<TokenId> tokens;
    for (const SampledStep& sampled : Run(jobs, static_cast<int64_t>(ids.size()))) {
      EXPECT_EQ(sampled.error, EndError::kNone) << sampled.detail;
      tokens.push_back(sampled.result.token);
    }
    return tokens;
  }
  std::vector<SampledStep> Run(const std::vector<SampleJob>& jobs, int64_t rows) {
    Queue(jobs, rows);
    return Take();
  }
  void Queue(const std::vector<SampleJob>& jobs, int64_t rows) {
    logits_.assign(static_cast<size_t>(rows * kVocabulary), 0);
    for (int64_t r = 0; r < rows; ++r) logits_[r * kVocabulary + kLikeliest] = 1;
    if (not_a_number_ >= 0) {
      logits_[not_a_number_ * kVocabulary] = std::numeric_limits<float>::quiet_NaN();
    }
    EXPECT_TRUE(sampler_->Queue(jobs, Tensor(logits_.data(), DType::kF32, rows, kVocabulary)).ok());
  }
  std::vector<SampledStep> Take() {
    std::vector<SampledStep> results;
    EXPECT_TRUE(sampler_->Take(&results).ok());
    return results;
  }

  const std::unique_ptr<Backend> backend_;
  std::unique_ptr<DeviceStepSampler> sampler_;
  FakeSampler* fake_ = nullptr;
  std::vector<float> logits_;
  int64_t not_a_number_ = -1;  // row
};

TEST_F(StepSamplerTest, WhatTheBackendsSamplerRefusesTheProcessorDoes) {
  const EngineRequest request = Greedy();
  EngineRequest refused = Greedy();
  refused.sampling.top_k = 7;
  sampler_->Open(1, request);
  sampler_->Open(2, refused);
  EXPECT_THAT(Sample({1, 2}), ElementsAre(kOfSlot, kLikeliest));
  EXPECT_FALSE(sampler_->holds_tokens()) << "one of them is on the host";
  EXPECT_THAT(Sample({2, 1}), ElementsAre(kLikeliest, kOfSlot));
  EXPECT_THAT(Sample({1}), ElementsAre(kOfSlot));
  EXPECT_TRUE(sampler_->holds_tokens());
}

// While it lives, what is logged is kept instead.
class KeptLog {
 public:
  KeptLog() : sink_(std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(100)) {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", sink_));
  }
  ~KeptLog() { spdlog::set_default_logger(before_); }
  std::vector<std::string> lines() const { return sink_->last_formatted(); }

 private:
  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  const std::shared_ptr<spdlog::sinks::ringbuffer_sink_mt> sink_;
};

TEST_F(StepSamplerTest, RefusalsAreLoggedEverMoreRarely) {
  const KeptLog log;
  EngineRequest refused = Greedy();
  refused.sampling.top_k = 7;
  for (SequenceId id = 1; id <= 100; ++id) {
    sampler_->Open(id, refused);
    EXPECT_THAT(Sample({id}), ElementsAre(kLikeliest));
    EXPECT_THAT(Sample({id}), ElementsAre(kLikeliest));  // known to be refused
    sampler_->Close(id);
  }
  ASSERT_EQ(log.lines().size(), 7u);  // 1, 2, 4, … 64
  EXPECT_THAT(log.lines().back(), HasSubstr("64 sequence(s) so far: no seven"));
}

TEST_F(StepSamplerTest, SlotsOfThoseThatWaitAreTakenAndOpenedAgainWithAllTokens) {
  Create(/*slots=*/1);
  EngineRequest request = Greedy();
  request.generated = {3};
  sampler_->Open(1, request);
  sampler_->Open(2, request);
  EXPECT_THAT(Sample({1}), ElementsAre(kOfSlot));
  EXPECT_THAT(Sample({2}), ElementsAre(kOfSlot));
  EXPECT_THAT(Sample({1}), ElementsAre(kOfSlot));
  EXPECT_THAT(fake_->opened[0].prompt, ElementsAre(1, 3, 0));
  EXPECT_THAT(fake_->opened[0].generated, ElementsAre(3, kOfSlot));
  sampler_->Close(2);
  EXPECT_TRUE(fake_->is_open[0]);
  sampler_->Close(1);
  EXPECT_FALSE(fake_->is_open[0]);
}

TEST_F(StepSamplerTest, PromptRowsAreTheProcessors) {
  EngineRequest request = Greedy();
  request.prompt_logprobs = 1;
  sampler_->Open(1, request);
  sampler_->Open(2, request);
  // Two prompt tokens and a token of the one, two prompt tokens of the other.
  const std::vector<SampleJob> jobs = {
      {.id = 1, .first_row = 0, .rows = 3, .prompt_rows = 2, .prompt_token = 1, .samples = true},
      {.id = 2, .first_row = 3, .rows = 2, .prompt_rows = 2, .prompt_token = 1}};
  Queue(jobs, 5);
  EXPECT_THAT(fake_->queued.front(), ElementsAre(-1, -1, 0, -1, -1));
  EXPECT_FALSE(sampler_->holds_tokens());
  const std::vector<SampledStep> results = Take();
  EXPECT_EQ(results[0].result.token, kOfSlot);
  for (const SampledStep& result : results) {
    ASSERT_EQ(result.prompt_logprobs.size(), 2u);
    EXPECT_EQ(result.prompt_logprobs[0].top[0].token, kLikeliest);
  }
}

TEST_F(StepSamplerTest, ANaNInAPromptRowEndsASequenceWhoseOwnRowHasNone) {
  EngineRequest request = Greedy();
  request.prompt_logprobs = 0;
  sampler_->Open(1, request);
  sampler_->Open(2, request);
  not_a_number_ = 1;
  const std::vector<SampledStep> results = Run(
      {{.id = 1, .first_row = 0, .rows = 3, .prompt_rows = 2, .prompt_token = 1, .samples = true},
       {.id = 2, .first_row = 3, .rows = 1, .samples = true}},
      4);
  EXPECT_EQ(results[0].error, EndError::kNotANumber);
  EXPECT_EQ(results[1].error, EndError::kNone);
  EXPECT_EQ(results[1].result.token, kOfSlot + 1);
}

TEST_F(StepSamplerTest, LateTokensAreThoseOfTheSequencesSlots) {
  const EngineRequest request = Greedy();
  sampler_->Open(1, request);
  sampler_->Open(2, request);
  const std::vector<SampleJob> first = {{.id = 1, .first_row = 0, .rows = 1, .samples = true},
                                        {.id = 2, .first_row = 1, .rows = 1, .samples = true}};
  Queue(first, 2);
  StepPlan plan;
  sampler_->Supply(plan);
  EXPECT_THAT(fake_->supplied, IsEmpty());
  plan.late = {{.index = 4, .id = 2}, {.index = 9, .id = 1}};
  sampler_->Supply(plan);
  EXPECT_THAT(fake_->supplied, ElementsAre(std::make_pair(4, 1), std::make_pair(9, 0)));
  Queue({{.id = 2, .first_row = 0, .rows = 1, .samples = true}}, 1);
  sampler_->Close(1);  // its first token comes nevertheless
  EXPECT_EQ(Take()[0].result.token, kOfSlot);
  EXPECT_EQ(Take()[0].result.token, kOfSlot + 1);
}

}  // namespace
}  // namespace marcoro
