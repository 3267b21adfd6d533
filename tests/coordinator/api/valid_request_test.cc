// What becomes of good requests before they reach a worker.
#include "coordinator/api/valid_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace marcoro {
namespace {

using testing::ElementsAre;

constexpr uint32_t kContext = 100;

class ValidRequestTest : public testing::Test {
 protected:
  void Load(const std::string& checkpoint, const std::string& chat_template = "") {
    ServedModelOptions options;
    options.directory = std::string(MARCORO_TEST_DATA) + "/" + checkpoint;
    options.chat_template = chat_template;
    auto model = LoadServedModel(options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }
  void SetUp() override { Load("tiny"); }

  ValidGenerate Parse(const v1::GenerateRequest& request) {
    auto valid = ParseGenerate(request, *model_, kContext);
    EXPECT_TRUE(valid.ok()) << valid.status();
    return valid.ok() ? *std::move(valid) : ValidGenerate();
  }

  static v1::GenerateRequest Ids(int count) {
    v1::GenerateRequest request;
    for (int i = 0; i < count; ++i) request.mutable_token_ids()->add_ids(7);
    return request;
  }

  static v1::GenerateRequest Chat() {
    v1::GenerateRequest request;
    v1::Message* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content("hi");
    return request;
  }

  std::string TextOf(const google::protobuf::RepeatedField<uint32_t>& ids) const {
    std::string text;
    for (const uint32_t id : ids) text += model_->tokenizer->TokenText(static_cast<int32_t>(id));
    return text;
  }

  std::unique_ptr<const ServedModel> model_;
};

TEST_F(ValidRequestTest, MaxTokensIsCutToWhatTheContextLeaves) {
  v1::GenerateRequest request = Ids(90);
  EXPECT_EQ(Parse(request).submit.max_tokens(), 10u);
  request.set_max_tokens(4);
  EXPECT_EQ(Parse(request).submit.max_tokens(), 4u);
  request.set_max_tokens(4'000'000'000);
  request.set_min_tokens(50);
  EXPECT_EQ(Parse(request).submit.max_tokens(), 10u);
  EXPECT_EQ(Parse(request).submit.min_tokens(), 10u);
  EXPECT_EQ(Parse(Ids(99)).submit.max_tokens(), 1u);
}

TEST_F(ValidRequestTest, TopKBeyondTheVocabularyKeepsAllOfIt) {
  v1::GenerateRequest request = Ids(1);
  request.set_top_k(4'000'000'000);
  EXPECT_EQ(Parse(request).submit.sampling().top_k(), 1024u);
}

TEST_F(ValidRequestTest, EveryFieldReachesTheWorker) {
  v1::GenerateRequest request = Ids(1);
  request.set_temperature(0);
  request.set_top_p(0.5f);
  request.set_min_p(0.25f);
  request.set_typical_p(0.75f);
  request.set_repetition_penalty(1.5f);
  request.set_presence_penalty(-2);
  request.set_frequency_penalty(3);
  (*request.mutable_logit_bias())[5] = -100;
  request.add_allowed_token_ids(8);
  request.set_logprobs(20);
  request.set_prompt_logprobs(0);
  request.set_priority(-100);
  request.set_seed(0);
  const worker::v1::Submit submit = Parse(request).submit;
  EXPECT_EQ(submit.sampling().temperature(), 0);
  EXPECT_EQ(submit.sampling().top_p(), 0.5f);
  EXPECT_EQ(submit.sampling().min_p(), 0.25f);
  EXPECT_EQ(submit.sampling().typical_p(), 0.75f);
  EXPECT_EQ(submit.sampling().repetition_penalty(), 1.5f);
  EXPECT_EQ(submit.sampling().presence_penalty(), -2);
  EXPECT_EQ(submit.sampling().frequency_penalty(), 3);
  EXPECT_EQ(submit.sampling().logit_bias().at(5), -100);
  EXPECT_THAT(submit.sampling().allowed_token_ids(), ElementsAre(8));
  EXPECT_EQ(submit.logprobs(), 20u);
  EXPECT_TRUE(submit.has_prompt_logprobs());
  EXPECT_EQ(submit.priority(), -100);
  EXPECT_EQ(submit.sampling().seed(), 0u);
}

TEST_F(ValidRequestTest, BadWordsAreBannedInsideAndAtTheBeginningOfWords) {
  v1::GenerateRequest request = Ids(1);
  request.add_bad_words();
  for (const char* written : {"value", " value"}) {  // a space in front asks for nothing else
    request.set_bad_words(0, written);
    const ValidGenerate valid = Parse(request);
    ASSERT_EQ(valid.submit.sampling().bad_words_size(), 2);
    EXPECT_EQ(TextOf(valid.submit.sampling().bad_words(0).ids()), "value");
    EXPECT_EQ(TextOf(valid.submit.sampling().bad_words(1).ids()), " value");
  }
}

TEST_F(ValidRequestTest, SpecialTokensAreParsedInPromptsUnlessToldOtherwise) {
  v1::GenerateRequest request;
  request.set_prompt("a</s>");
  EXPECT_THAT(Parse(request).submit.prompt_ids(), testing::Contains(2));
  request.set_parse_special_tokens(false);
  EXPECT_THAT(Parse(request).submit.prompt_ids(), testing::Not(testing::Contains(2)));
}

TEST_F(ValidRequestTest, AddBosIsTheRequestsWord) {
  v1::GenerateRequest request;
  request.set_prompt("a");
  EXPECT_EQ(Parse(request).submit.prompt_ids(0), 1u);
  request.set_add_bos(false);
  EXPECT_NE(Parse(request).submit.prompt_ids(0), 1u);
  request.set_prompt("");
  request.set_add_bos(true);
  EXPECT_THAT(Parse(request).submit.prompt_ids(), ElementsAre(1));
}

TEST_F(ValidRequestTest, AChatmlAnswerEndsWithItsMarkEvenWhereThatIsPlainText) {
  Load("small");
  EXPECT_THAT(Parse(Chat()).stop, ElementsAre("<|im_end|>"));
  v1::GenerateRequest request = Chat();
  request.add_stop("<|im_end|>");
  request.add_stop("other");
  EXPECT_THAT(Parse(request).stop, ElementsAre("<|im_end|>", "other"));
  request = Chat();
  request.set_ignore_eos(true);
  EXPECT_THAT(Parse(request).stop, testing::IsEmpty());
}

TEST_F(ValidRequestTest, NoStopTextIsLostForTheTemplatesOwn) {
  Load("small");
  v1::GenerateRequest request = Chat();
  for (int i = 0; i < 15; ++i) request.add_stop("stop" + std::to_string(i));
  EXPECT_EQ(Parse(request).stop.size(), 16u);
  request.add_stop("one more");
  EXPECT_EQ(ParseGenerate(request, *model_, kContext).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ValidRequestTest, EchoOfTokenIdsIsTheirText) {
  v1::GenerateRequest request;
  const auto ids = model_->tokenizer->Encode("the value");
  request.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
  request.set_echo(true);
  EXPECT_EQ(Parse(request).echo, "the value");
}

TEST_F(ValidRequestTest, APromptIsEchoedByteForByte) {
  v1::GenerateRequest request;
  request.set_prompt("  two spaces, \xc3\xa9 and </s>");
  request.set_echo(true);
  EXPECT_EQ(Parse(request).echo, request.prompt());
}

}  // namespace
}  // namespace marcoro
