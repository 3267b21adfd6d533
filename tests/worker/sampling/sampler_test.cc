#include "worker/sampling/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "tests/worker/sampling/reference.h"

namespace marcoro {
namespace {

using ::testing::SizeIs;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

absl::StatusOr<SampleResult> SampleFrom(const SequenceSampler& sampler,
                                        const std::vector<float>& logits) {
  static SamplingScratch* scratch = new SamplingScratch;
  return sampler.Sample(logits, ReferenceSummary(logits), scratch);
}

TokenId Chosen(const SamplingParams& params, const std::vector<TokenId>& prompt,
               const std::vector<TokenId>& generated, const std::vector<float>& logits) {
  const auto result = SampleFrom(SequenceSampler(params, prompt, generated), logits);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? result->token : -1;
}

SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

TEST(SequenceSamplerTest, GreedyTakesTheLargestLogitAndOfEqualsTheLowestId) {
  EXPECT_EQ(Chosen(Greedy(), {}, {}, {1, 5, 5, 2}), 1);
  SamplingParams params = Greedy();
  params.top_k = 2;
  params.seed = 7;
  EXPECT_EQ(Chosen(params, {}, {}, {1, 5, 5, 2}), 1);
}

TEST(SequenceSamplerTest, GreedyAmongAdjustedLogitsToo) {
  SamplingParams params = Greedy();
  params.logit_bias = {{3, 10.0f}};
  EXPECT_EQ(Chosen(params, {}, {}, {1, 5, 5, 2}), 3);
  params.logit_bias = {{1, -1.0f}, {0, 3.0f}, {2, -1.0f}};  // 4, 4, 4, 2
  EXPECT_EQ(Chosen(params, {}, {}, {1, 5, 5, 2}), 0);
  params.logit_bias = {{70, 1.0f}};
  std::vector<float> logits(100, 0.0f);
  EXPECT_EQ(Chosen(params, {}, {}, logits), 70);
}

TEST(SequenceSamplerTest, RepetitionPenaltyCountsPromptAndGenerated) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 2;
  EXPECT_EQ(Chosen(params, {0}, {1}, {4, 3.9f, 2.1f}), 2);
  EXPECT_EQ(Chosen(params, {0, 0, 0}, {}, {-1, -1.5f}), 1) << "negative logits are multiplied";
}

TEST(SequenceSamplerTest, PresenceAndFrequencyPenaltiesCountGeneratedOnly) {
  SamplingParams params = Greedy();
  params.presence_penalty = 1;
  EXPECT_EQ(Chosen(params, {0, 0}, {}, {4, 3.5f}), 0);
  EXPECT_EQ(Chosen(params, {}, {0, 0}, {4, 3.5f}), 1);
  EXPECT_EQ(Chosen(params, {}, {0, 0}, {4, 2.5f}), 0) << "once, however often";
  params.presence_penalty = 0;
  params.frequency_penalty = 1;
  EXPECT_EQ(Chosen(params, {}, {0, 0}, {4, 2.5f}), 1) << "once for each time";
}

TEST(SequenceSamplerTest, OnlyAllowedTokensAreChosen) {
  SamplingParams params;
  params.allowed_token_ids = {5, 2, 5, 900, -1};
  const std::vector<float> logits = RandomLogits(50, 2, 1);
  std::set<TokenId> chosen;
  SequenceSampler sampler(params, {}, {});
  for (int i = 0; i < 200; ++i) {
    const auto result = SampleFrom(sampler, logits);
    ASSERT_TRUE(result.ok());
    chosen.insert(result->token);
    sampler.Append(result->token);
  }
  EXPECT_EQ(chosen, (std::set<TokenId>{2, 5}));
}

TEST(SequenceSamplerTest, EndTokensWaitForMinTokens) {
  SamplingParams params = Greedy();
  params.end_token_ids = {2, 3};
  params.min_tokens = 2;
  const std::vector<float> logits = {0, 1, 9, 8};
  EXPECT_EQ(Chosen(params, {7, 7, 7}, {}, logits), 1);
  EXPECT_EQ(Chosen(params, {}, {1}, logits), 1);
  EXPECT_EQ(Chosen(params, {}, {1, 1}, logits), 2);
}

TEST(SequenceSamplerTest, BadWordsAreNeverCompleted) {
  SamplingParams params = Greedy();
  params.bad_words = {{4}, {1, 2, 3}, {2, 0}};
  const std::vector<float> logits = {6, 0, 0, 7, 9};
  EXPECT_EQ(Chosen(params, {}, {}, logits), 3) << "4 is a word by itself";
  EXPECT_EQ(Chosen(params, {1}, {2}, logits), 1) << "1 2 may not go on with 3, 2 not with 0";
  EXPECT_EQ(Chosen(params, {1, 2}, {}, logits), 1) << "the prompt counts";
  EXPECT_EQ(Chosen(params, {}, {1, 2, 1}, logits), 3);
  EXPECT_EQ(Chosen(params, {2}, {}, logits), 3) << "only the end of 1 2";
}

TEST(SequenceSamplerTest, ForbiddingEverythingIsAnErrorOfTheRequest) {
  SamplingParams params;
  params.allowed_token_ids = {1};
  params.bad_words = {{1}};
  for (const float temperature : {0.0f, 1.0f}) {
    params.temperature = temperature;
    const auto result = SampleFrom(SequenceSampler(params, {}, {}), {0, 1, 2});
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(SequenceSamplerTest, NanFailsWhateverTheParameters) {
  SamplingParams biased;
  biased.logit_bias = {{0, 1.0f}};
  SamplingParams nucleus;
  nucleus.top_p = 0.5f;
  for (const SamplingParams& params : {Greedy(), SamplingParams(), biased, nucleus}) {
    const SequenceSampler sampler(params, {}, {});
    for (const std::vector<float>& logits : std::vector<std::vector<float>>{
             {0, kNan, 1}, {kNan, kNan}, {0, kInfinity}, {-kInfinity, -kInfinity}}) {
      EXPECT_EQ(SampleFrom(sampler, logits).status().code(), absl::StatusCode::kDataLoss);
    }
    EXPECT_TRUE(SampleFrom(sampler, {0, 1, 2}).ok()) << "and leaves no trace";
  }
}

TEST(SequenceSamplerTest, LogprobsAreOfTheModelNotOfTheSettings) {
  SamplingParams params;
  params.logprobs = 2;
  params.temperature = 0.1f;
  params.logit_bias = {{0, 50.0f}};
  params.top_k = 1;
  const std::vector<float> logits = {std::log(1.0f), std::log(3.0f), std::log(4.0f)};
  const auto result = SampleFrom(SequenceSampler(params, {}, {}), logits);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->token, 0);
  EXPECT_EQ(result->logprob.token, 0);
  EXPECT_NEAR(result->logprob.logprob, std::log(1.0 / 8), 1e-6);
  ASSERT_THAT(result->logprob.top, SizeIs(2));
  EXPECT_EQ(result->logprob.top[0].token, 2);
  EXPECT_NEAR(result->logprob.top[0].logprob, std::log(4.0 / 8), 1e-6);
}

// All parameters at once: a sequence that is rebuilt in its middle goes on with the same tokens.
TEST(SequenceSamplerTest, ARebuiltSequenceGoesOnAsIfItHadNeverStopped) {
  SamplingParams params;
  params.seed = 123456789;
  params.temperature = 1.3f;
  params.top_k = 60;
  params.top_p = 0.97f;
  params.min_p = 0.001f;
  params.typical_p = 0.99f;
  params.repetition_penalty = 1.1f;
  params.presence_penalty = 0.2f;
  params.frequency_penalty = 0.1f;
  params.logit_bias = {{3, 1.0f}};
  params.bad_words = {{4, 5}, {6, 7, 8}};
  params.end_token_ids = {2};
  params.min_tokens = 30;
  const std::vector<TokenId> prompt = {1, 4, 6, 7};
  constexpr int kTokens = 60;
  const auto logits_after = [](const std::vector<TokenId>& generated) {
    return RandomLogits(100, 2, generated.size());
  };
  SequenceSampler sampler(params, prompt, {});
  std::vector<TokenId> generated;
  for (int i = 0; i < kTokens; ++i) {
    const auto result = SampleFrom(sampler, logits_after(generated));
    ASSERT_TRUE(result.ok());
    generated.push_back(result->token);
    sampler.Append(result->token);
  }
  EXPECT_GT(std::set<TokenId>(generated.begin(), generated.end()).size(), 10u);
  for (int cut = 0; cut < kTokens; ++cut) {
    const std::vector<TokenId> before(generated.begin(), generated.begin() + cut);
    const SequenceSampler rebuilt(params, prompt, before);
    EXPECT_EQ(rebuilt.generated_tokens(), cut);
    const auto result = SampleFrom(rebuilt, logits_after(before));
    ASSERT_TRUE(result.ok());
    ASSERT_EQ(result->token, generated[cut]) << "cut at " << cut;
  }
}

TEST(SequenceSamplerTest, SeedsAndPositionsDrawDifferently) {
  const std::vector<float> logits(1000, 0.0f);
  std::set<TokenId> by_seed, by_position;
  SamplingParams params;
  SequenceSampler sampler(params, {}, {});
  for (int i = 0; i < 50; ++i) {
    params.seed = i;
    by_seed.insert(Chosen(params, {}, {}, logits));
    const auto result = SampleFrom(sampler, logits);
    ASSERT_TRUE(result.ok());
    by_position.insert(result->token);
    sampler.Append(result->token);
  }
  EXPECT_GT(by_seed.size(), 40u);
  EXPECT_GT(by_position.size(), 40u);
}

TEST(SequenceSamplerTest, WhatWasInTheScratchDoesNotMatter) {
  SamplingScratch used;
  SamplingParams params;
  params.top_p = 0.8f;
  params.logit_bias = {{1, 0.5f}};
  params.logprobs = 5;
  for (const int32_t vocabulary : {5000, 10, 700}) {
    const std::vector<float> logits = RandomLogits(vocabulary, 2, vocabulary);
    const SequenceSampler sampler(params, {}, {});
    SamplingScratch fresh;
    const auto a = sampler.Sample(logits, ReferenceSummary(logits), &used);
    const auto b = sampler.Sample(logits, ReferenceSummary(logits), &fresh);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->token, b->token);
    EXPECT_EQ(a->logprob.top.size(), b->logprob.top.size());
  }
}

}  // namespace
}  // namespace marcoro
