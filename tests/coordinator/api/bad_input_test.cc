// What clients are told about requests that make no sense: a code, a reason, and the field by its
// path. After each of them the server answers the next good request, and nothing is left behind.
#include <grpcpp/generic/generic_stub.h>

#include <filesystem>
#include <limits>

#include "tests/coordinator/api/api_fixture.h"

namespace marcoro {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using worker::v1::SEQUENCE_END_LENGTH;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class BadInputTest : public ApiTest {
 protected:
  void TearDown() override {
    EXPECT_THAT(router_->submits(), testing::IsEmpty()) << "a bad request reached the router";
    EXPECT_EQ(server_->requests_in_flight(), 0u);
    EXPECT_EQ(admission_->requests(), 0);
    router_->SetScript(
        [](const worker::v1::Submit&) { return OneByOne({10}, SEQUENCE_END_LENGTH); });
    v1::GenerateResponse response;
    EXPECT_TRUE(Generate(Prompt("still there?"), &response).ok());
  }

  void ExpectInvalid(const v1::GenerateRequest& request, const std::string& field) {
    const CallError error = Refusal(request);
    EXPECT_EQ(error.code, StatusCode::INVALID_ARGUMENT) << error.message;
    EXPECT_EQ(error.reason, "INVALID_FIELD");
    EXPECT_THAT(error.fields, ElementsAre(field));
    EXPECT_THAT(error.message, HasSubstr(field));
  }

  using FloatSetter = void (v1::GenerateRequest::*)(float);
  void ExpectRefuses(const std::string& field, FloatSetter set, std::vector<float> values) {
    for (const float value : values) {
      v1::GenerateRequest request = Prompt("hi");
      (request.*set)(value);
      SCOPED_TRACE(value);
      ExpectInvalid(request, field);
    }
  }

  // Sends bytes as they are to a method.
  grpc::Status SendBytes(const std::string& method, const std::string& bytes) {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::GenericStub stub(channel_);
    auto call =
        stub.PrepareUnaryCall(&context, "/marcoro.v1.InferenceService/" + method, request, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    return status;
  }
};

TEST_F(BadInputTest, Temperature) {
  ExpectRefuses("temperature", &v1::GenerateRequest::set_temperature,
                {-0.1f, 100.1f, kNan, kInfinity, -kInfinity});
}

TEST_F(BadInputTest, TopP) {
  ExpectRefuses("top_p", &v1::GenerateRequest::set_top_p, {0, -0.5f, 1.01f, kNan, kInfinity});
}

TEST_F(BadInputTest, MinP) {
  ExpectRefuses("min_p", &v1::GenerateRequest::set_min_p, {-0.01f, 1.01f, kNan, kInfinity});
}

TEST_F(BadInputTest, TypicalP) {
  ExpectRefuses("typical_p", &v1::GenerateRequest::set_typical_p, {0, -1, 1.5f, kNan, kInfinity});
}

TEST_F(BadInputTest, RepetitionPenalty) {
  ExpectRefuses("repetition_penalty", &v1::GenerateRequest::set_repetition_penalty,
                {0, -1, 100.5f, kNan, kInfinity});
}

TEST_F(BadInputTest, PresenceAndFrequencyPenalty) {
  ExpectRefuses("presence_penalty", &v1::GenerateRequest::set_presence_penalty,
                {-100.5f, 100.5f, kNan, kInfinity});
  ExpectRefuses("frequency_penalty", &v1::GenerateRequest::set_frequency_penalty,
                {-100.5f, 100.5f, kNan, -kInfinity});
}

TEST_F(BadInputTest, LogitBias) {
  v1::GenerateRequest request = Prompt("hi");
  (*request.mutable_logit_bias())[99999] = 1;
  ExpectInvalid(request, "logit_bias[99999]");
  request = Prompt("hi");
  (*request.mutable_logit_bias())[5] = kNan;
  ExpectInvalid(request, "logit_bias[5]");
  request = Prompt("hi");
  for (uint32_t id = 0; id < 1025; ++id) (*request.mutable_logit_bias())[id] = 1;
  ExpectInvalid(request, "logit_bias");
}

TEST_F(BadInputTest, TokenIdsOutsideOfTheVocabulary) {
  v1::GenerateRequest request;
  for (const uint32_t id : {1u, 2u, 3u, 1024u}) request.mutable_token_ids()->add_ids(id);
  ExpectInvalid(request, "token_ids.ids[3]");
  request = Prompt("hi");
  request.add_allowed_token_ids(4'000'000'000);
  ExpectInvalid(request, "allowed_token_ids[0]");
  request = Prompt("hi");
  request.add_stop_token_ids(1);
  request.add_stop_token_ids(1024);
  ExpectInvalid(request, "stop_token_ids[1]");
}

TEST_F(BadInputTest, TooManyOfSomething) {
  v1::GenerateRequest request = Prompt("hi");
  for (int i = 0; i < 4097; ++i) request.add_allowed_token_ids(1);
  ExpectInvalid(request, "allowed_token_ids");
  request = Prompt("hi");
  for (int i = 0; i < 65; ++i) request.add_stop_token_ids(1);
  ExpectInvalid(request, "stop_token_ids");
  request = Prompt("hi");
  for (int i = 0; i < 17; ++i) request.add_stop(std::string("x"));
  ExpectInvalid(request, "stop");
  request = Prompt("hi");
  for (int i = 0; i < 257; ++i) request.add_bad_words(std::string("x"));
  ExpectInvalid(request, "bad_words");
}

TEST_F(BadInputTest, LengthsThatContradict) {
  v1::GenerateRequest request = Prompt("hi");
  request.set_max_tokens(0);
  ExpectInvalid(request, "max_tokens");
  request.set_max_tokens(10);
  request.set_min_tokens(11);
  ExpectInvalid(request, "min_tokens");
}

TEST_F(BadInputTest, ChoicesAndLogprobsBeyondTheirCaps) {
  for (const uint32_t n : {0u, 17u, 4'000'000'000u}) {
    v1::GenerateRequest request = Prompt("hi");
    request.set_n(n);
    ExpectInvalid(request, "n");
  }
  v1::GenerateRequest request = Prompt("hi");
  request.set_logprobs(21);
  ExpectInvalid(request, "logprobs");
  request = Prompt("hi");
  request.set_prompt_logprobs(21);
  ExpectInvalid(request, "prompt_logprobs");
  request = Prompt("hi");
  request.set_priority(-101);
  ExpectInvalid(request, "priority");
}

TEST_F(BadInputTest, AStopTextOfAMegabyte) {
  v1::GenerateRequest request = Prompt("hi");
  request.add_stop(std::string("fine"));
  request.add_stop(std::string(1 << 20, 'x'));
  ExpectInvalid(request, "stop[1]");
}

TEST_F(BadInputTest, EmptyStopTexts) {
  v1::GenerateRequest request = Prompt("hi");
  request.add_stop(std::string("a"));
  request.add_stop(std::string("b"));
  request.add_stop(std::string(""));
  ExpectInvalid(request, "stop[2]");
}

TEST_F(BadInputTest, NoInput) { ExpectInvalid(v1::GenerateRequest(), "input"); }

TEST_F(BadInputTest, APromptWithoutAnyToken) {
  v1::GenerateRequest request = Prompt("");
  request.set_add_bos(false);
  ExpectInvalid(request, "prompt");
  request = v1::GenerateRequest();
  request.mutable_token_ids();
  ExpectInvalid(request, "token_ids.ids");
  request = v1::GenerateRequest();
  request.mutable_chat();
  ExpectInvalid(request, "chat.messages");
}

TEST_F(BadInputTest, APromptLongerThanTheContext) {
  v1::GenerateRequest request;
  for (int i = 0; i < 512; ++i) request.mutable_token_ids()->add_ids(5);
  ExpectInvalid(request, "token_ids.ids");
  EXPECT_THAT(Refusal(request).message, testing::AllOf(HasSubstr("512"), HasSubstr("511")));
  ExpectInvalid(Prompt(std::string(5'000, 'x')), "prompt");
  request = v1::GenerateRequest();
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(std::string(5'000, 'x'));
  ExpectInvalid(request, "chat.messages");
}

// Refused from its length alone: tokenizing it would take seconds.
TEST_F(BadInputTest, APromptOfMegabytesIsRefusedAtOnce) {
  const absl::Time begin = absl::Now();
  ExpectInvalid(Prompt(std::string(3 << 20, 'x')), "prompt");
  EXPECT_LT(absl::Now() - begin, absl::Seconds(1));
}

TEST_F(BadInputTest, ARequestAboveTheMessageLimit) {
  const CallError error = Refusal(Prompt(std::string(5 << 20, 'x')));
  EXPECT_EQ(error.code, StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(error.message, HasSubstr("larger than max"));
}

TEST_F(BadInputTest, AMessageWithoutARole) {
  v1::GenerateRequest request;
  request.mutable_chat()->add_messages()->set_content("hello");
  ExpectInvalid(request, "chat.messages[0].role");
}

TEST_F(BadInputTest, AChatWithAModelThatHasNoTemplate) {
  Serve("window");  // no template of its own
  v1::GenerateRequest request;
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hello");
  const CallError error = Refusal(request);
  EXPECT_EQ(error.code, StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(error.reason, "NO_CHAT_TEMPLATE");
  EXPECT_THAT(error.message, HasSubstr("--chat-template"));
}

TEST_F(BadInputTest, AnotherModelsName) {
  v1::GenerateRequest request = Prompt("hi");
  request.set_model("mixtral");
  const CallError error = Refusal(request);
  EXPECT_EQ(error.code, StatusCode::NOT_FOUND);
  EXPECT_EQ(error.reason, "MODEL_NOT_FOUND");
  EXPECT_THAT(error.message, testing::AllOf(HasSubstr("mixtral"), HasSubstr("tiny")));
}

TEST_F(BadInputTest, EveryWrongFieldIsNamed) {
  v1::GenerateRequest request = Prompt("hi");
  request.set_temperature(-1);
  request.set_n(99);
  request.set_top_p(2);
  const CallError error = Refusal(request);
  EXPECT_THAT(error.fields, testing::UnorderedElementsAre("temperature", "n", "top_p"));
  EXPECT_THAT(error.message, HasSubstr("and 2 more"));
}

TEST_F(BadInputTest, ManyWrongFieldsAreCutToWhatATrailerHolds) {
  v1::GenerateRequest request;
  for (int i = 0; i < 100'000; ++i) request.mutable_token_ids()->add_ids(1'000'000);
  const CallError error = Refusal(request);
  EXPECT_EQ(error.code, StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(error.fields.size(), 16u);
  EXPECT_THAT(error.message, HasSubstr("99999 more"));
}

// protobuf refuses such bytes while parsing; gRPC alone would answer UNIMPLEMENTED without a word.
TEST_F(BadInputTest, APromptThatIsNotUtf8) {
  const std::string bytes = "\x0a\x04hi\xff!";  // prompt = 1
  for (const char* method : {"Generate", "GenerateStream", "Score", "Tokenize"}) {
    SCOPED_TRACE(method);
    const CallError error = ErrorOf(SendBytes(method, bytes));
    EXPECT_EQ(error.code, StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(error.reason, "INVALID_UTF8");
    EXPECT_THAT(error.fields, ElementsAre("prompt"));
  }
}

TEST_F(BadInputTest, NestedTextThatIsNotUtf8IsNamedByItsPath) {
  // chat = 3 { messages = 1 { role = 1 "user" } messages = 1 { content = 2 "\xc3" } }
  const std::string bytes("\x1a\x0d\x0a\x06\x0a\x04user\x0a\x03\x12\x01\xc3", 15);
  const CallError error = ErrorOf(SendBytes("Generate", bytes));
  EXPECT_EQ(error.reason, "INVALID_UTF8");
  EXPECT_THAT(error.fields, ElementsAre("chat.messages[1].content"));
  // stop = 20, the second of two
  const CallError stop =
      ErrorOf(SendBytes("Generate", std::string("\x0a\x01x\xa2\x01\x01y\xa2\x01\x01\xfe", 11)));
  EXPECT_THAT(stop.fields, ElementsAre("stop[1]"));
}

TEST_F(BadInputTest, BytesThatAreNoRequest) {
  for (const std::string& bytes : {std::string("\x0a\x7fshort", 7),
                                   std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11),
                                   std::string("\x07", 1), std::string("\x1a\x02\x0a\x05", 4)}) {
    const CallError error = ErrorOf(SendBytes("GenerateStream", bytes));
    EXPECT_EQ(error.code, StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(error.reason, "MALFORMED_REQUEST");
    EXPECT_THAT(error.message, HasSubstr("marcoro.v1.GenerateRequest"));
  }
}

TEST_F(BadInputTest, RandomBytesNeverHurt) {
  uint32_t state = 1;
  for (int round = 0; round < 300; ++round) {
    std::string bytes(1, '\x38');  // n = 7, a varint: most values are out of range
    for (uint32_t i = 0; i < 5 + state % 60; ++i) {
      state = state * 1664525 + 1013904223;
      bytes.push_back(static_cast<char>(state >> 24));
    }
    const grpc::StatusCode code = SendBytes("Generate", bytes).error_code();
    EXPECT_EQ(code, StatusCode::INVALID_ARGUMENT) << testing::PrintToString(bytes);
  }
}

TEST_F(BadInputTest, AnUnknownMethod) {
  EXPECT_EQ(SendBytes("Guess", "").error_code(), StatusCode::UNIMPLEMENTED);
}

class NoTokenizerTest : public BadInputTest {
 protected:
  void SetUp() override {
    // Weights at random need no more than a configuration.
    const std::filesystem::path directory =
        std::filesystem::path(testing::TempDir()) / "marcoro_no_tokenizer";
    std::filesystem::create_directories(directory);
    std::filesystem::copy_file(DataPath("tiny/config.json"), directory / "config.json",
                               std::filesystem::copy_options::overwrite_existing);
    Serve(directory.string());
  }
  void TearDown() override {}
};

TEST_F(NoTokenizerTest, TextIsRefused) {
  v1::GenerateRequest with_stop;
  with_stop.mutable_token_ids()->add_ids(1);
  with_stop.add_stop("x");
  for (const v1::GenerateRequest& request : {Prompt("hi"), with_stop}) {
    const CallError error = Refusal(request);
    EXPECT_EQ(error.code, StatusCode::FAILED_PRECONDITION);
    EXPECT_EQ(error.reason, "NO_TOKENIZER");
    EXPECT_THAT(error.message, HasSubstr("has no tokenizer"));
  }
}

TEST_F(NoTokenizerTest, TokenIdsAreServed) {
  router_->SetScript(
      [](const worker::v1::Submit&) { return OneByOne({10, 11}, SEQUENCE_END_LENGTH); });
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(1);
  v1::GenerateResponse response;
  ASSERT_TRUE(Generate(request, &response).ok());
  EXPECT_EQ(response.choices(0).text(), "");
  EXPECT_THAT(response.choices(0).token_ids(), ElementsAre(10, 11));
}

}  // namespace
}  // namespace marcoro
