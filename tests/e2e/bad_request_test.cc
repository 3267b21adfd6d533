// Requests that no correct client sends: refused with the field's name, and the server goes on.
#include <cmath>
#include <functional>
#include <limits>

#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr char kGenerate[] = "/marcoro.v1.InferenceService/Generate";
constexpr char kGenerateStream[] = "/marcoro.v1.InferenceService/GenerateStream";

struct Bad {
  const char* field;  // that BadRequest names
  std::function<void(v1::GenerateRequest*)> spoil;
};

std::vector<Bad> BadFields() {
  using Request = v1::GenerateRequest;
  return {
      {"temperature", [](Request* r) { r->set_temperature(kNan); }},
      {"temperature", [](Request* r) { r->set_temperature(kInfinity); }},
      {"temperature", [](Request* r) { r->set_temperature(-0.5f); }},
      {"top_p", [](Request* r) { r->set_top_p(kNan); }},
      {"top_p", [](Request* r) { r->set_top_p(0); }},
      {"top_p", [](Request* r) { r->set_top_p(-1); }},
      {"min_p", [](Request* r) { r->set_min_p(1.5f); }},
      {"typical_p", [](Request* r) { r->set_typical_p(-kInfinity); }},
      {"repetition_penalty", [](Request* r) { r->set_repetition_penalty(0); }},
      {"repetition_penalty", [](Request* r) { r->set_repetition_penalty(kInfinity); }},
      {"presence_penalty", [](Request* r) { r->set_presence_penalty(kNan); }},
      {"frequency_penalty", [](Request* r) { r->set_frequency_penalty(-1000); }},
      {"logit_bias[7]", [](Request* r) { (*r->mutable_logit_bias())[7] = kNan; }},
      {"logit_bias[5000]", [](Request* r) { (*r->mutable_logit_bias())[5000] = 1; }},
      {"n", [](Request* r) { r->set_n(0); }},
      {"n", [](Request* r) { r->set_n(17); }},
      {"n", [](Request* r) { r->set_n(4'000'000'000); }},
      {"logprobs", [](Request* r) { r->set_logprobs(21); }},
      {"prompt_logprobs", [](Request* r) { r->set_prompt_logprobs(1000); }},
      {"max_tokens", [](Request* r) { r->set_max_tokens(0); }},
      {"min_tokens", [](Request* r) { r->set_min_tokens(r->max_tokens() + 1); }},
      {"priority", [](Request* r) { r->set_priority(-101); }},
      {"token_ids.ids[1]",
       [](Request* r) {
         r->mutable_token_ids()->add_ids(1);
         r->mutable_token_ids()->add_ids(1024);
       }},
      {"token_ids.ids[0]", [](Request* r) { r->mutable_token_ids()->add_ids(4'294'967'295); }},
      {"token_ids.ids", [](Request* r) { r->mutable_token_ids(); }},
      {"allowed_token_ids[0]", [](Request* r) { r->add_allowed_token_ids(1024); }},
      {"stop_token_ids[0]", [](Request* r) { r->add_stop_token_ids(99999); }},
      {"stop[0]", [](Request* r) { r->add_stop(std::string(1 << 20, 'x')); }},
      {"stop[0]", [](Request* r) { r->add_stop(""); }},
      {"stop",
       [](Request* r) {
         for (int i = 0; i < 17; ++i) r->add_stop("x");
       }},
      {"bad_words[0]", [](Request* r) { r->add_bad_words(""); }},
      {"prompt",
       [](Request* r) {
         r->set_add_bos(false);
         r->set_prompt("");
       }},
      {"prompt", [](Request* r) { r->set_prompt(std::string(40'000, 'q')); }},
      {"prompt", [](Request* r) { r->set_prompt(std::string(3 << 20, 'q')); }},
      {"chat.messages", [](Request* r) { r->mutable_chat(); }},
      {"chat.messages[0].role",
       [](Request* r) { r->mutable_chat()->add_messages()->set_content("hi"); }},
      {"input", [](Request* r) { r->clear_input(); }},
  };
}

class BadRequestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(cluster_.ready()) << cluster_.log();
    expected_ = Bits(cluster_.client().Generate(Greedy("Return", 8)).response);
  }
  // The server answers as if nothing had happened.
  void ExpectTheServerToGoOn() {
    const Reply reply = cluster_.client().Generate(Greedy("Return", 8));
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message() << cluster_.log();
    EXPECT_TRUE(Bits(reply.response) == expected_);
  }
  void ExpectNothingToLeak() {
    EXPECT_TRUE(cluster_.AwaitIdle());
    EXPECT_TRUE(
        Eventually([&] { return cluster_.CoordinatorMetric("marcoro_requests_in_flight") == 0; }));
  }

  Cluster cluster_{{.tp = 2}};
  std::string expected_;
};

TEST_F(BadRequestTest, EveryFieldOutOfItsRangeIsNamed) {
  int number = 0;
  for (const Bad& bad : BadFields()) {
    SCOPED_TRACE(std::string(bad.field) + ", number " + std::to_string(number++));
    v1::GenerateRequest request = Greedy("Return", 8);
    bad.spoil(&request);
    for (const Reply& reply :
         {cluster_.client().Generate(request), cluster_.client().GenerateStream(request)}) {
      EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
          << reply.status.error_message();
      EXPECT_EQ(FieldOf(reply.status), bad.field) << reply.status.error_message();
      EXPECT_EQ(ReasonOf(reply.status), "INVALID_FIELD");
      EXPECT_LT(reply.status.error_message().size(), 300u);
    }
    ExpectTheServerToGoOn();
  }
  ExpectNothingToLeak();
}

TEST_F(BadRequestTest, BytesThatAreNoMessageAreRefused) {
  const std::string valid = Greedy("Return", 8).SerializeAsString();
  const std::vector<std::string> broken = {
      "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  // a tag that never ends
      std::string("\x0a\x7f", 2) + "short",            // a text longer than the message
      valid.substr(0, 4),                              // cut
      std::string("\x12\x05\x0a\x7f", 4),              // a nested length beyond its message
      std::string("\x0b", 1),                          // a group that is never closed
      std::string("\x00\x00\x00\x00", 4),              // field number 0
      std::string("\x65\x01", 2),                      // a float of one byte
  };
  for (const std::string& bytes : broken) {
    SCOPED_TRACE(testing::PrintToString(bytes));
    for (const char* method :
         {kGenerate, kGenerateStream, "/marcoro.v1.InferenceService/Score",
          "/marcoro.v1.InferenceService/Tokenize", "/marcoro.v1.InferenceService/Detokenize"}) {
      const RawReply reply = CallRaw(cluster_.client().channel(), method, bytes);
      EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
          << method << reply.status.error_message();
      EXPECT_EQ(ReasonOf(reply.status), "MALFORMED_REQUEST") << method;
    }
    ExpectTheServerToGoOn();
  }
  ExpectNothingToLeak();
}

TEST_F(BadRequestTest, TextThatIsNotUtf8IsNamed) {
  const std::string overlong = "\xc0\x80";
  for (const std::string& text :
       {std::string("\xff\xfe"), overlong, std::string("\xed\xa0\x80"), std::string("a\xe6\x97")}) {
    const std::string length(1, static_cast<char>(text.size()));
    for (const auto& [tag, field] :
         {std::make_pair("\x0a", "prompt"), std::make_pair("\xa2\x01", "stop[0]")}) {
      const RawReply reply = CallRaw(cluster_.client().channel(), kGenerate, tag + length + text);
      EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
      EXPECT_EQ(ReasonOf(reply.status), "INVALID_UTF8");
      EXPECT_EQ(FieldOf(reply.status), field);
    }
  }
  ExpectTheServerToGoOn();
}

TEST_F(BadRequestTest, FieldsOfAnotherVersionAreIgnored) {
  // Field 999, a text: what a client of a later version may send.
  const std::string bytes = Greedy("Return", 8).SerializeAsString() + "\xba\x3e\x02hi";
  const RawReply reply = CallRaw(cluster_.client().channel(), kGenerate, bytes);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  v1::GenerateResponse response;
  ASSERT_EQ(reply.messages.size(), 1u);
  ASSERT_TRUE(response.ParseFromString(reply.messages[0]));
  EXPECT_TRUE(Bits(response) == expected_);
}

TEST_F(BadRequestTest, AMessageBeyondTheLimitIsRefused) {
  v1::GenerateRequest request = Greedy(std::string(5 << 20, 'q'), 8);
  EXPECT_EQ(cluster_.client().Generate(request).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectTheServerToGoOn();
}

TEST_F(BadRequestTest, AnUnknownModelIsNotFound) {
  v1::GenerateRequest request = Greedy("Return", 8);
  request.set_model("another");
  const Reply reply = cluster_.client().Generate(request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(ReasonOf(reply.status), "MODEL_NOT_FOUND");
  grpc::ClientContext context;
  v1::GetModelRequest get;
  get.set_name("another");
  v1::GetModelResponse response;
  EXPECT_EQ(cluster_.client().models().GetModel(&context, get, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(BadRequestTest, AnUnknownMethodIsUnimplemented) {
  const RawReply reply =
      CallRaw(cluster_.client().channel(), "/marcoro.v1.InferenceService/Nothing", "");
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  ExpectTheServerToGoOn();
}

TEST_F(BadRequestTest, ScoringAndTextCallsCheckTheirFieldsToo) {
  v1::ScoreRequest score;
  score.set_prompt("Return");
  score.set_top(21);
  v1::ScoreResponse scored;
  const grpc::Status top = cluster_.client().Score(score, &scored);
  EXPECT_EQ(top.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(FieldOf(top), "top");
  v1::ScoreRequest empty;
  empty.mutable_token_ids();
  EXPECT_EQ(FieldOf(cluster_.client().Score(empty, &scored)), "token_ids.ids");
  v1::DetokenizeRequest ids;
  ids.add_token_ids(5);
  ids.add_token_ids(70000);
  v1::DetokenizeResponse text;
  EXPECT_EQ(FieldOf(cluster_.client().Detokenize(ids, &text)), "token_ids[1]");
  v1::TokenizeResponse tokens;
  EXPECT_EQ(FieldOf(cluster_.client().Tokenize(v1::TokenizeRequest(), &tokens)), "input");
  ExpectTheServerToGoOn();
}

TEST_F(BadRequestTest, APromptOfTheWholeContextFitsAndOneTokenMoreDoesNot) {
  v1::GenerateRequest request = Greedy("", 8);
  auto& ids = *request.mutable_token_ids()->mutable_ids();
  ids.Add(1);
  for (int i = 1; i < 4095; ++i) ids.Add(300 + static_cast<uint32_t>(i) % 100);
  const Reply full = cluster_.client().Generate(request);
  ASSERT_TRUE(full.status.ok()) << full.status.error_message();
  EXPECT_EQ(full.response.choices(0).token_ids_size(), 1);
  EXPECT_EQ(full.response.choices(0).finish_reason(), v1::FINISH_REASON_LENGTH);
  ids.Add(300);
  const Reply over = cluster_.client().Generate(request);
  EXPECT_EQ(over.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(FieldOf(over.status), "token_ids.ids");
  ExpectNothingToLeak();
}

}  // namespace
}  // namespace marcoro
