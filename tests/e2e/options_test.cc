// Options of a request whose effect a client sees.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

v1::GenerateRequest ChatRequest(const std::string& content) {
  v1::GenerateRequest request = Greedy("", 8);
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(content);
  return request;
}

v1::TokenizeResponse RenderChat(Client& client, const std::string& content) {
  v1::TokenizeRequest request;
  *request.mutable_chat() = ChatRequest(content).chat();
  v1::TokenizeResponse response;
  const grpc::Status status = client.Tokenize(request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response;
}

struct Template {
  const char* name;
  const char* rendered;  // of one user message "hi"
};

void PrintTo(const Template& chat, std::ostream* out) { *out << chat.name; }

class ChatTest : public ::testing::TestWithParam<Template> {};

TEST_P(ChatTest, ANamedTemplateRendersAndAnswers) {
  Cluster cluster(
      {.model = "window", .flags = {std::string("--chat-template=") + GetParam().name}});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  EXPECT_THAT(RenderChat(cluster.client(), "hi").rendered(), HasSubstr(GetParam().rendered));
  const Reply reply = cluster.client().Generate(ChatRequest("hi"));
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.response.choices(0).token_ids_size(), 8);
  EXPECT_EQ(cluster.client().Model().chat_template(), GetParam().name);
}

INSTANTIATE_TEST_SUITE_P(
    Templates, ChatTest,
    ::testing::Values(Template{"alpaca", "### Instruction:\n\nhi\n\n### Response:\n"},
                      Template{"chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"},
                      Template{"mistral", "[INST] hi [/INST]"},
                      Template{"llama2", "[INST] hi [/INST]"}, Template{"raw", "hi"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(ChatRecognitionTest, TheCheckpointsOwnTemplateIsUsedAndContentIsNeverSpecial) {
  Cluster cluster({.model = "tiny"});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  EXPECT_EQ(cluster.client().Model().chat_template(), "alpaca");
  const v1::TokenizeResponse tokens = RenderChat(cluster.client(), "</s>");
  for (const uint32_t id : tokens.token_ids())
    EXPECT_NE(id, 2u) << "content became a special token";
}

TEST(ChatRecognitionTest, AModelWithoutATemplateSaysSo) {
  Cluster cluster({.model = "window"});
  ASSERT_TRUE(cluster.ready()) << cluster.log();
  const Reply reply = cluster.client().Generate(ChatRequest("hi"));
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(reply.status.error_message(), HasSubstr("--chat-template"));
}

class OptionsTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(cluster_.ready()) << cluster_.log(); }
  v1::GenerateResponse Generate(const v1::GenerateRequest& request) {
    const Reply reply = cluster_.client().Generate(request);
    EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
    v1::GenerateResponse response = reply.response;
    if (response.choices().empty()) response.add_choices();
    return response;
  }
  std::string Text(const v1::GenerateRequest& request) {
    return Generate(request).choices(0).text();
  }

  Cluster cluster_;
};

TEST_F(OptionsTest, StopTextsEndTheAnswerWhetherStreamedOrNot) {
  const std::string whole = Text(Greedy("The default value is", 40));
  ASSERT_GE(whole.size(), 12u);
  const std::string stop = whole.substr(5, 4);  // across tokens, wherever their borders are
  const std::string before = whole.substr(0, whole.find(stop));
  v1::GenerateRequest request = Greedy("The default value is", 40);
  request.add_stop(stop);
  const v1::GenerateResponse stopped = Generate(request);
  EXPECT_EQ(stopped.choices(0).text(), before);
  EXPECT_EQ(stopped.choices(0).finish_reason(), v1::FINISH_REASON_STOP_SEQUENCE);
  const Reply streamed = cluster_.client().GenerateStream(request);
  EXPECT_EQ(streamed.response.choices(0).text(), before);
  EXPECT_EQ(Bits(streamed.response), Bits(stopped));
  request.set_include_stop(true);
  EXPECT_EQ(Text(request), before + stop);
  EXPECT_TRUE(cluster_.AwaitIdle());
}

TEST_F(OptionsTest, EchoPutsThePromptInFront) {
  v1::GenerateRequest request = Greedy("The default value is", 8);
  const std::string answer = Text(request);
  request.set_echo(true);
  EXPECT_EQ(Text(request), request.prompt() + answer);
}

TEST_F(OptionsTest, ChoiceIDrawsAsARequestWithSeedPlusIWould) {
  v1::GenerateRequest request = Sampled("Create a new", 20, 40);
  request.set_n(4);
  const v1::GenerateResponse four = Generate(request);
  ASSERT_EQ(four.choices_size(), 4);
  EXPECT_EQ(four.usage().generated_tokens(), 80u);
  for (int i = 0; i < 4; ++i) {
    const v1::GenerateResponse alone =
        Generate(Sampled("Create a new", 20, 40 + static_cast<uint64_t>(i)));
    EXPECT_EQ(four.choices(i).text(), alone.choices(0).text()) << i;
  }
}

TEST_F(OptionsTest, MinTokensHoldsTheEndOfSequenceOff) {
  v1::GenerateRequest request = Greedy("Return", 60);
  request.clear_ignore_eos();
  const int length = Generate(request).choices(0).token_ids_size();
  ASSERT_LT(length, 60) << "the model never ends this";
  request.set_min_tokens(static_cast<uint32_t>(length) + 5);
  EXPECT_GE(Generate(request).choices(0).token_ids_size(), length + 5);
}

TEST_F(OptionsTest, OnlyAllowedIdsAreGenerated) {
  v1::GenerateRequest request = Sampled("Return", 30, 2);
  for (const uint32_t id : {300u, 301u, 302u}) request.add_allowed_token_ids(id);
  const v1::GenerateResponse response = Generate(request);
  for (const uint32_t id : response.choices(0).token_ids()) {
    EXPECT_TRUE(id >= 300 && id <= 302) << id;
  }
}

TEST_F(OptionsTest, BadWordsAreNeverCompleted) {
  v1::GenerateRequest request = Greedy("If the file does not exist, raise", 40);
  const std::string free = Text(request);
  const size_t space = free.find(' ', 1);
  const std::string word = free.substr(1, space - 1);
  ASSERT_FALSE(word.empty());
  request.add_bad_words(word);
  EXPECT_THAT(Text(request), Not(StartsWith(" " + word + " ")));
}

TEST_F(OptionsTest, ABiasDecidesTheToken) {
  v1::GenerateRequest request = Greedy("Return", 5);
  (*request.mutable_logit_bias())[333] = 100;
  const v1::GenerateResponse response = Generate(request);
  for (const uint32_t id : response.choices(0).token_ids()) EXPECT_EQ(id, 333u);
}

TEST_F(OptionsTest, AStopTokenEndsTheAnswerAsItsLastToken) {
  const v1::GenerateResponse whole = Generate(Greedy("Return", 10));
  v1::GenerateRequest request = Greedy("Return", 10);
  const uint32_t stop = whole.choices(0).token_ids(4);
  request.add_stop_token_ids(stop);
  const v1::GenerateResponse stopped = Generate(request);
  EXPECT_EQ(stopped.choices(0).finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(stopped.choices(0).token_ids(stopped.choices(0).token_ids_size() - 1), stop);
}

TEST_F(OptionsTest, AStreamsTextIsNeverCutInsideACharacter) {
  Stream stream(cluster_.client().inference(), Sampled("日本語 😀", 200, 8));
  // Protobuf refuses to parse a text field that is not valid UTF-8, so reading to the end is the
  // proof.
  const Reply reply = stream.Finish();
  EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.response.choices(0).text(), Text(Sampled("日本語 😀", 200, 8)));
}

}  // namespace
}  // namespace marcoro
