// What a coordinator may send: everything the engine relies on is checked here, whoever sent it.
#include "worker/service/convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

namespace marcoro {
namespace {

constexpr int32_t kVocabulary = 100;

worker::v1::Submit ValidSubmit() {
  worker::v1::Submit submit;
  submit.set_sequence_id(7);
  submit.add_prompt_ids(1);
  submit.add_prompt_ids(99);
  submit.set_max_tokens(5);
  auto* sampling = submit.mutable_sampling();
  sampling->set_temperature(1);
  sampling->set_top_p(1);
  sampling->set_typical_p(1);
  sampling->set_repetition_penalty(1);
  return submit;
}

TEST(ConvertTest, AWholeSubmitBecomesARequest) {
  worker::v1::Submit submit = ValidSubmit();
  submit.add_generated_ids(50);
  submit.add_stop_token_ids(2);
  submit.set_min_tokens(3);
  submit.set_priority(-4);
  submit.set_queue_timeout_microseconds(1500);
  submit.set_logprobs(0);
  submit.set_prompt_logprobs(20);
  (*submit.mutable_sampling()->mutable_logit_bias())[9] = -1.5f;
  (*submit.mutable_sampling()->mutable_logit_bias())[3] = 2.0f;
  submit.mutable_sampling()->add_bad_words()->add_ids(8);
  const auto request = ToEngineRequest(submit, kVocabulary);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->client_id, 7);
  EXPECT_EQ(request->prompt, (std::vector<TokenId>{1, 99}));
  EXPECT_EQ(request->generated, (std::vector<TokenId>{50}));
  EXPECT_EQ(request->stop_token_ids, (std::vector<TokenId>{2}));
  EXPECT_EQ(request->sampling.end_token_ids, (std::vector<TokenId>{2}));
  EXPECT_EQ(request->sampling.min_tokens, 3);
  EXPECT_EQ(request->priority, -4);
  EXPECT_EQ(request->queue_timeout, absl::Microseconds(1500));
  EXPECT_EQ(request->sampling.logprobs, 0);
  EXPECT_EQ(request->prompt_logprobs, 20);
  EXPECT_EQ(request->sampling.logit_bias,
            (std::vector<std::pair<TokenId, float>>{{3, 2.0f}, {9, -1.5f}}));
  EXPECT_EQ(request->sampling.bad_words, (std::vector<std::vector<TokenId>>{{8}}));
}

TEST(ConvertTest, AbsentLogprobsStayOff) {
  const auto request = ToEngineRequest(ValidSubmit(), kVocabulary);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->sampling.logprobs, -1);
  EXPECT_EQ(request->prompt_logprobs, -1);
  EXPECT_FALSE(request->queue_timeout.has_value());
}

TEST(ConvertTest, WhatTheEngineCannotBeGivenIsRefusedByName) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  using Edit = std::function<void(worker::v1::Submit&)>;
  const std::pair<const char*, Edit> cases[] = {
      {"prompt_ids", [](auto& s) { s.clear_prompt_ids(); }},
      {"prompt_ids", [](auto& s) { s.add_prompt_ids(kVocabulary); }},
      {"prompt_ids", [](auto& s) { s.add_prompt_ids(0xffffffffu); }},
      {"generated_ids", [](auto& s) { s.add_generated_ids(kVocabulary); }},
      {"max_tokens", [](auto& s) { s.set_max_tokens(0x80000000u); }},
      {"min_tokens", [](auto& s) { s.set_min_tokens(0x80000000u); }},
      {"logprobs", [](auto& s) { s.set_logprobs(21); }},
      {"prompt_logprobs", [](auto& s) { s.set_prompt_logprobs(21); }},
      {"temperature", [](auto& s) { s.mutable_sampling()->set_temperature(-1); }},
      {"temperature", [=](auto& s) { s.mutable_sampling()->set_temperature(kNan); }},
      {"temperature", [=](auto& s) { s.mutable_sampling()->set_temperature(kInfinity); }},
      {"top_p", [](auto& s) { s.mutable_sampling()->set_top_p(0); }},
      {"top_p", [=](auto& s) { s.mutable_sampling()->set_top_p(kNan); }},
      {"min_p", [](auto& s) { s.mutable_sampling()->set_min_p(1.5f); }},
      {"typical_p", [](auto& s) { s.mutable_sampling()->set_typical_p(0); }},
      {"repetition_penalty", [](auto& s) { s.mutable_sampling()->set_repetition_penalty(0); }},
      {"presence_penalty", [=](auto& s) { s.mutable_sampling()->set_presence_penalty(kNan); }},
      {"frequency_penalty",
       [=](auto& s) { s.mutable_sampling()->set_frequency_penalty(kInfinity); }},
      {"top_k", [](auto& s) { s.mutable_sampling()->set_top_k(0xffffffffu); }},
      {"logit_bias",
       [](auto& s) { (*s.mutable_sampling()->mutable_logit_bias())[kVocabulary] = 1; }},
      {"logit_bias[3]", [=](auto& s) { (*s.mutable_sampling()->mutable_logit_bias())[3] = kNan; }},
      {"allowed_token_ids",
       [](auto& s) { s.mutable_sampling()->add_allowed_token_ids(kVocabulary); }},
      {"bad_words", [](auto& s) { s.mutable_sampling()->add_bad_words(); }},
      {"bad_words", [](auto& s) { s.mutable_sampling()->add_bad_words()->add_ids(kVocabulary); }},
  };
  for (const auto& [field, edit] : cases) {
    worker::v1::Submit submit = ValidSubmit();
    edit(submit);
    const auto request = ToEngineRequest(submit, kVocabulary);
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_NE(request.status().message().find(field), std::string::npos) << request.status();
  }
}

TEST(ConvertTest, OutputsKeepEveryField) {
  SequenceOutput output;
  output.client_id = 3;
  output.tokens = {4, 5};
  output.logprobs = {{-0.5f, {{4, -0.5f}, {6, -1.0f}}}, {-2.0f, {}}};
  output.prompt_logprobs = {{std::nullopt, {}}, {-3.0f, {}}};
  output.end = EndReason::kError;
  output.error = EndError::kNotANumber;
  output.detail = "why";
  output.queue_time = absl::Milliseconds(2);
  output.cached_tokens = 16;
  worker::v1::SequenceUpdate update;
  ToProto(output, &update);
  EXPECT_EQ(update.sequence_id(), 3);
  ASSERT_EQ(update.token_ids_size(), 2);
  EXPECT_EQ(update.token_ids(1), 5);
  ASSERT_EQ(update.logprobs_size(), 2);
  EXPECT_FLOAT_EQ(update.logprobs(0).logprob(), -0.5f);
  ASSERT_EQ(update.logprobs(0).top_size(), 2);
  EXPECT_EQ(update.logprobs(0).top(1).token_id(), 6);
  ASSERT_EQ(update.prompt_logprobs_size(), 2);
  EXPECT_FALSE(update.prompt_logprobs(0).has_logprob());
  EXPECT_EQ(update.end(), worker::v1::SEQUENCE_END_ERROR);
  EXPECT_EQ(update.error(), worker::v1::SEQUENCE_ERROR_NOT_A_NUMBER);
  EXPECT_EQ(update.detail(), "why");
  EXPECT_EQ(update.queue_microseconds(), 2000);
  EXPECT_EQ(update.cached_tokens(), 16);
}

}  // namespace
}  // namespace marcoro
