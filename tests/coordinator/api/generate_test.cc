// What clients get for what the workers generate.
#include <numeric>

#include "tests/coordinator/api/api_fixture.h"

namespace marcoro {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using worker::v1::SEQUENCE_END_LENGTH;
using worker::v1::SEQUENCE_END_STOP_TOKEN;

constexpr uint32_t kEos = 2;

class GenerateTest : public ApiTest {
 protected:
  void Play(FakeRouter::Script script) {
    router_->SetScript([script](const worker::v1::Submit&) { return script; });
  }
  void PlayText(const std::string& text) { Play(OneByOne(Generated(text), SEQUENCE_END_LENGTH)); }

  v1::GenerateResponse Answer(const v1::GenerateRequest& request) {
    v1::GenerateResponse response;
    const grpc::Status status = Generate(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
};

TEST_F(GenerateTest, APromptIsAWholeRequest) {
  PlayText(" there, friend");
  const v1::GenerateResponse response = Answer(Prompt("hi"));
  ASSERT_EQ(response.choices_size(), 1);
  EXPECT_EQ(response.choices(0).text(), " there, friend");
  EXPECT_EQ(response.choices(0).finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(response.choices(0).token_ids(), ElementsAreArray(Generated(" there, friend")));
  EXPECT_EQ(response.choices(0).logprobs_size(), 0);
  EXPECT_EQ(response.model(), "tiny");
  EXPECT_EQ(response.id().size(), 32u);
  EXPECT_EQ(response.usage().generated_tokens(), Generated(" there, friend").size());
  EXPECT_EQ(response.usage().prompt_tokens(), router_->submits()[0].prompt_ids_size());
}

TEST_F(GenerateTest, SubmitsThePromptWithTheServersDefaults) {
  PlayText("x");
  Answer(Prompt("hi"));
  const worker::v1::Submit submit = router_->submits().at(0);
  EXPECT_EQ(submit.prompt_ids(0), 1u);  // <s>
  EXPECT_EQ(submit.max_tokens(), 256u);
  EXPECT_EQ(submit.sampling().temperature(), 1.0f);
  EXPECT_EQ(submit.sampling().top_p(), 1.0f);
  EXPECT_EQ(submit.sampling().repetition_penalty(), 1.0f);
  EXPECT_EQ(submit.sampling().top_k(), 0u);
  EXPECT_THAT(submit.stop_token_ids(), ElementsAre(kEos));
  EXPECT_FALSE(submit.has_logprobs());
  EXPECT_GT(submit.queue_timeout_microseconds(), 0u);
}

TEST_F(GenerateTest, TheCheckpointsGenerationConfigComesBeforeTheServersDefaults) {
  Serve("small");  // temperature 0.7, top_p 0.95, top_k 50, two end-of-sequence ids
  PlayText("x");
  v1::GenerateRequest request = Prompt("hi");
  request.set_top_k(7);
  Answer(request);
  const worker::v1::Submit submit = router_->submits().at(0);
  EXPECT_FLOAT_EQ(submit.sampling().temperature(), 0.7f);
  EXPECT_FLOAT_EQ(submit.sampling().top_p(), 0.95f);
  EXPECT_EQ(submit.sampling().top_k(), 7u);
  EXPECT_THAT(submit.stop_token_ids(), ElementsAre(2, 13));
}

TEST_F(GenerateTest, TokenIdsAreTakenAsTheyAre) {
  PlayText("x");
  v1::GenerateRequest request;
  for (const uint32_t id : {5, 6, 1023}) request.mutable_token_ids()->add_ids(id);
  Answer(request);
  EXPECT_THAT(router_->submits().at(0).prompt_ids(), ElementsAre(5, 6, 1023));
}

TEST_F(GenerateTest, AChatGoesThroughTheModelsTemplate) {
  PlayText("x");
  v1::GenerateRequest request;
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("Say </s> twice");
  request.set_echo(true);
  const v1::GenerateResponse response = Answer(request);
  EXPECT_EQ(response.choices(0).text(), "### Instruction:\n\nSay </s> twice\n\n### Response:\nx");
  // What stands in a message is never a special token.
  EXPECT_THAT(router_->submits().at(0).prompt_ids(), testing::Not(testing::Contains(kEos)));
}

TEST_F(GenerateTest, TheEndOfSequenceIsATokenWithoutText) {
  std::vector<uint32_t> ids = Generated(" done");
  ids.push_back(kEos);
  Play(OneByOne(ids, SEQUENCE_END_STOP_TOKEN));
  v1::GenerateRequest request = Prompt("hi");
  request.set_skip_special_tokens(false);
  const v1::GenerateResponse response = Answer(request);
  EXPECT_EQ(response.choices(0).text(), " done");
  EXPECT_EQ(response.choices(0).finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_THAT(response.choices(0).token_ids(), ElementsAreArray(ids));
  EXPECT_EQ(response.usage().generated_tokens(), ids.size());
}

TEST_F(GenerateTest, IncludeStopShowsTheStopToken) {
  std::vector<uint32_t> ids = Generated(" done");
  ids.push_back(kEos);
  Play(OneByOne(ids, SEQUENCE_END_STOP_TOKEN));
  v1::GenerateRequest request = Prompt("hi");
  request.set_skip_special_tokens(false);
  request.set_include_stop(true);
  EXPECT_EQ(Answer(request).choices(0).text(), " done</s>");
}

TEST_F(GenerateTest, IgnoreEosLeavesTheRequestsOwnStopTokens) {
  PlayText("x");
  v1::GenerateRequest request = Prompt("hi");
  request.set_ignore_eos(true);
  request.add_stop_token_ids(99);
  Answer(request);
  EXPECT_THAT(router_->submits().at(0).stop_token_ids(), ElementsAre(99));
}

TEST_F(GenerateTest, AStopTextAcrossTokensEndsTheChoiceAndItsSequence) {
  // Letter by letter, so that the stop text spans tokens.
  std::vector<uint32_t> ids;
  for (const char letter : std::string("abcSTOPdef")) ids.push_back(ByteToken(letter));
  router_->SetScript(nullptr);
  v1::GenerateRequest request = Prompt("hi");
  request.add_stop("STOP");
  router_->SetScript([ids](const worker::v1::Submit&) {
    FakeRouter::Script script;
    for (const uint32_t id : ids) script.push_back(Tokens({id}));
    return script;  // goes on until it is cancelled
  });
  const v1::GenerateResponse response = Answer(request);
  EXPECT_EQ(response.choices(0).text(), "abc");
  EXPECT_EQ(response.choices(0).finish_reason(), v1::FINISH_REASON_STOP_SEQUENCE);
  EXPECT_EQ(response.choices(0).token_ids_size(), 7);
  EXPECT_TRUE(router_->WaitForCancelled(1));
}

TEST_F(GenerateTest, IncludeStopKeepsTheStopText) {
  PlayText("one, two, three");
  v1::GenerateRequest request = Prompt("hi");
  request.add_stop(" two");
  request.set_include_stop(true);
  EXPECT_EQ(Answer(request).choices(0).text(), "one, two");
}

TEST_F(GenerateTest, StopTextsAreHeldOffUntilMinTokens) {
  std::vector<uint32_t> ids;
  for (const char letter : std::string("xxyxx")) ids.push_back(ByteToken(letter));
  Play(OneByOne(ids, SEQUENCE_END_LENGTH));
  v1::GenerateRequest request = Prompt("hi");
  request.add_stop("x");
  request.set_min_tokens(3);
  const v1::GenerateResponse response = Answer(request);
  EXPECT_EQ(response.choices(0).text(), "xxy");
  EXPECT_EQ(response.choices(0).finish_reason(), v1::FINISH_REASON_STOP_SEQUENCE);
}

TEST_F(GenerateTest, WhatMightHaveBecomeAStopTextComesOutAtTheEnd) {
  PlayText("so STO");
  v1::GenerateRequest request = Prompt("hi");
  request.add_stop("STOP");
  const v1::GenerateResponse response = Answer(request);
  EXPECT_EQ(response.choices(0).text(), "so STO");
  EXPECT_EQ(response.choices(0).finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(GenerateTest, ACharacterSplitOverTokensNeverLeavesInPieces) {
  const std::string euro = "\xe2\x82\xac";
  std::vector<uint32_t> ids;
  for (const char byte : euro + euro) ids.push_back(ByteToken(static_cast<uint8_t>(byte)));
  Play(OneByOne(ids, SEQUENCE_END_LENGTH));
  std::vector<v1::GenerateStreamResponse> messages;
  ASSERT_TRUE(Stream(Prompt("hi"), &messages).ok());
  std::string text;
  for (const auto& message : messages) {
    for (const v1::Choice& choice : message.choices()) {
      EXPECT_TRUE(choice.text().empty() || choice.text().size() % euro.size() == 0)
          << choice.text();
      text += choice.text();
    }
  }
  EXPECT_EQ(text, euro + euro);
}

TEST_F(GenerateTest, AnUnfinishedCharacterEndsAsReplacementCharacters) {
  Play(OneByOne({ByteToken('a'), ByteToken(0xE2), ByteToken(0x82)}, SEQUENCE_END_LENGTH));
  EXPECT_EQ(Answer(Prompt("hi")).choices(0).text(), "a\xef\xbf\xbd\xef\xbf\xbd");
}

TEST_F(GenerateTest, ChoicesDrawWithSeedsInARow) {
  router_->SetScript([](const worker::v1::Submit& submit) {
    return OneByOne({ByteToken('A' + static_cast<uint8_t>(submit.sampling().seed() - 40))},
                    SEQUENCE_END_LENGTH);
  });
  v1::GenerateRequest request = Prompt("hi");
  request.set_n(3);
  request.set_seed(40);
  const v1::GenerateResponse response = Answer(request);
  ASSERT_EQ(response.choices_size(), 3);
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(response.choices(static_cast<int>(i)).index(), i);
    EXPECT_EQ(response.choices(static_cast<int>(i)).text(), std::string(1, 'A' + i));
  }
  EXPECT_EQ(response.seed(), 40u);
  EXPECT_EQ(response.usage().generated_tokens(), 3u);
}

TEST_F(GenerateTest, AnUnsetSeedIsDrawnAndReported) {
  PlayText("x");
  const v1::GenerateResponse first = Answer(Prompt("hi"));
  const v1::GenerateResponse second = Answer(Prompt("hi"));
  EXPECT_NE(first.seed(), second.seed());
  EXPECT_EQ(router_->submits().at(0).sampling().seed(), first.seed());
}

TEST_F(GenerateTest, LogprobsComeWithTheTextOfTheirTokens) {
  worker::v1::SequenceUpdate update =
      Tokens({ByteToken('a'), ByteToken(0xE2)}, SEQUENCE_END_LENGTH);
  for (const float logprob : {-0.5f, -1.5f}) {
    worker::v1::TokenLogprobs* logprobs = update.add_logprobs();
    logprobs->set_logprob(logprob);
    worker::v1::LogprobEntry* top = logprobs->add_top();
    top->set_token_id(ByteToken('b'));
    top->set_logprob(-0.25f);
  }
  Play({update});
  v1::GenerateRequest request = Prompt("hi");
  request.set_logprobs(1);
  const v1::GenerateResponse response = Answer(request);
  EXPECT_EQ(router_->submits().at(0).logprobs(), 1u);
  ASSERT_EQ(response.choices(0).logprobs_size(), 2);
  const v1::TokenLogprob& first = response.choices(0).logprobs(0);
  EXPECT_EQ(first.token_id(), ByteToken('a'));
  EXPECT_EQ(first.token(), "a");
  EXPECT_FLOAT_EQ(first.logprob(), -0.5f);
  EXPECT_EQ(first.top(0).token(), "b");
  EXPECT_FLOAT_EQ(first.top(0).logprob(), -0.25f);
  EXPECT_EQ(response.choices(0).logprobs(1).token(), "\xef\xbf\xbd");
}

TEST_F(GenerateTest, EchoPutsThePromptInFrontOfEachChoice) {
  PlayText(" there");
  v1::GenerateRequest request = Prompt("hi");
  request.set_echo(true);
  request.set_n(2);
  const v1::GenerateResponse response = Answer(request);
  EXPECT_EQ(response.choices(0).text(), "hi there");
  EXPECT_EQ(response.choices(1).text(), "hi there");
}

TEST_F(GenerateTest, AStopTextInTheEchoedPromptDoesNotStop) {
  PlayText(" there");
  v1::GenerateRequest request = Prompt("hi");
  request.set_echo(true);
  request.add_stop("hi");
  EXPECT_EQ(Answer(request).choices(0).text(), "hi there");
}

TEST_F(GenerateTest, LogprobsOfThePromptComeWholeInTheFirstMessage) {
  router_->SetScript([](const worker::v1::Submit& submit) {
    FakeRouter::Script script;
    if (!submit.has_prompt_logprobs()) {  // another choice is ahead of the prompt's logprobs
      return OneByOne({10, 11}, SEQUENCE_END_LENGTH);
    }
    for (int i = 0; i < submit.prompt_ids_size(); ++i) {
      worker::v1::TokenLogprobs* logprobs = script.emplace_back().add_prompt_logprobs();
      if (i > 0) logprobs->set_logprob(-0.125f * static_cast<float>(i));
    }
    script.push_back(Tokens({12}, SEQUENCE_END_LENGTH));
    return script;
  });
  v1::GenerateRequest request = Prompt("hello there");
  request.set_prompt_logprobs(0);
  request.set_n(2);
  std::vector<v1::GenerateStreamResponse> messages;
  ASSERT_TRUE(Stream(request, &messages).ok());
  const worker::v1::Submit submit = router_->submits().at(0);
  ASSERT_EQ(messages.at(0).prompt_logprobs_size(), submit.prompt_ids_size());
  EXPECT_FALSE(messages[0].prompt_logprobs(0).has_logprob());
  EXPECT_FLOAT_EQ(messages[0].prompt_logprobs(1).logprob(), -0.125f);
  EXPECT_EQ(messages[0].prompt_logprobs(1).token_id(), submit.prompt_ids(1));
  for (size_t i = 1; i < messages.size(); ++i) EXPECT_EQ(messages[i].prompt_logprobs_size(), 0);
}

// The pieces of a stream, put together, are the unary answer.
TEST_F(GenerateTest, AStreamSaysWhatTheUnaryCallSays) {
  router_->SetScript([this](const worker::v1::Submit& submit) {
    FakeRouter::Script script = OneByOne(
        Generated(submit.sampling().seed() % 2 ? " an odd \xc3\xa9t\xc3\xa9 END" : " even more"),
        SEQUENCE_END_LENGTH);
    for (auto& update : script) update.add_logprobs()->set_logprob(-1);
    script[0].set_cached_tokens(2);
    script[0].set_queue_microseconds(1);
    return script;
  });
  v1::GenerateRequest request = Prompt("hi");
  request.set_n(4);
  request.set_seed(7);
  request.set_logprobs(0);
  request.set_echo(true);
  request.add_stop("END");
  const v1::GenerateResponse unary = Answer(request);
  std::vector<v1::GenerateStreamResponse> messages;
  ASSERT_TRUE(Stream(request, &messages).ok());

  std::vector<v1::Choice> choices(4);
  for (const auto& message : messages) {
    EXPECT_EQ(message.id(), messages[0].id());
    EXPECT_EQ(message.model(), "tiny");
    for (const v1::Choice& choice : message.choices()) {
      v1::Choice& whole = choices.at(choice.index());
      EXPECT_EQ(whole.finish_reason(), v1::FINISH_REASON_UNSPECIFIED) << "nothing after the end";
      whole.set_text(whole.text() + choice.text());
      whole.mutable_token_ids()->MergeFrom(choice.token_ids());
      whole.mutable_logprobs()->MergeFrom(choice.logprobs());
      whole.set_index(choice.index());
      whole.set_finish_reason(choice.finish_reason());
    }
    EXPECT_EQ(message.has_usage(), &message == &messages.back());
  }
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(choices[static_cast<size_t>(i)].DebugString(), unary.choices(i).DebugString());
  }
  EXPECT_EQ(messages.back().usage().DebugString(), unary.usage().DebugString());
  EXPECT_EQ(unary.usage().cached_tokens(), 2u);
  EXPECT_EQ(messages.back().seed(), unary.seed());
  EXPECT_GT(messages.back().timings().total_seconds(), 0);
  EXPECT_GE(messages.back().timings().total_seconds(),
            messages.back().timings().first_token_seconds());
}

TEST_F(GenerateTest, AFailedSequenceFailsTheRequestAndCancelsItsOtherChoices) {
  router_->SetFailure(absl::InternalError("the model gave a value that is not a number"));
  v1::GenerateRequest request = Prompt("hi");
  request.set_n(3);
  const CallError error = Refusal(request);
  EXPECT_EQ(error.code, grpc::StatusCode::INTERNAL);
  EXPECT_EQ(error.reason, "MODEL_FAILURE");
  EXPECT_EQ(router_->running(), 0);
}

TEST_F(GenerateTest, PromptsThatBeginAlikeShareAnAffinity) {
  PlayText("x");
  const auto request = [](uint32_t count, uint32_t last) {
    v1::GenerateRequest r;
    for (uint32_t i = 0; i < count; ++i) r.mutable_token_ids()->add_ids(10 + i % 50);
    r.mutable_token_ids()->add_ids(last);
    return r;
  };
  Answer(request(64, 3));
  Answer(request(64, 4));
  Answer(request(20, 3));
  Answer(request(5, 3));
  const std::vector<uint64_t> affinities = router_->affinities();
  EXPECT_EQ(affinities[0], affinities[1]);
  EXPECT_NE(affinities[0], affinities[2]);
  EXPECT_EQ(affinities[3], 0u);
}

}  // namespace
}  // namespace marcoro
