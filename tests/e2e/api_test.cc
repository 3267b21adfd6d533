// Every RPC once, over a socket, at each tensor-parallel degree.
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using Health = grpc::health::v1::HealthCheckResponse;

struct Shape {
  const char* model;
  int tp;
};

void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.model << " tp " << shape.tp; }

std::string Name(const ::testing::TestParamInfo<Shape>& info) {
  return std::string(info.param.model) + "Tp" + std::to_string(info.param.tp);
}

class EveryRpcTest : public ::testing::TestWithParam<Shape> {
 protected:
  EveryRpcTest() : cluster_({.model = GetParam().model, .tp = GetParam().tp}) {}
  void SetUp() override { ASSERT_TRUE(cluster_.ready()) << cluster_.log(); }
  Client& client() { return cluster_.client(); }

  void ExpectGenerateAndStreamToAgree();
  void ExpectScoreToAgreeWithPromptLogprobs();
  void ExpectTokenizeAndDetokenizeToInvertEachOther();
  void ExpectModelsToBeDescribed();
  void ExpectHealth();
  void ExpectReflection();

  Cluster cluster_;
};

void EveryRpcTest::ExpectGenerateAndStreamToAgree() {
  v1::GenerateRequest request = Sampled("If the file", 24, 11);
  request.set_logprobs(2);
  const Reply whole = client().Generate(request);
  ASSERT_TRUE(whole.status.ok()) << whole.status.error_message();
  ASSERT_EQ(whole.response.choices_size(), 1);
  const v1::Choice& choice = whole.response.choices(0);
  EXPECT_EQ(choice.token_ids_size(), 24);
  EXPECT_EQ(choice.logprobs_size(), 24);
  EXPECT_EQ(choice.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_FALSE(choice.text().empty());
  EXPECT_EQ(whole.response.usage().generated_tokens(), 24u);
  EXPECT_EQ(whole.response.seed(), 11u);
  EXPECT_EQ(whole.response.model(), GetParam().model);
  EXPECT_FALSE(whole.response.id().empty());
  EXPECT_GE(whole.response.timings().total_seconds(),
            whole.response.timings().first_token_seconds());

  const Reply stream = client().GenerateStream(request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(Bits(stream.response), Bits(whole.response));
}

void EveryRpcTest::ExpectScoreToAgreeWithPromptLogprobs() {
  v1::ScoreRequest request;
  request.set_prompt("The default value is");
  request.set_top(1);
  v1::ScoreResponse score;
  const grpc::Status status = client().Score(request, &score);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(score.tokens_size(), 5);  // with <s>, as golden.json has it
  EXPECT_EQ(score.tokens(0).token_id(), 1u);
  EXPECT_FALSE(score.tokens(0).has_logprob());
  v1::GenerateRequest generate = Greedy(request.prompt(), 1);
  generate.set_prompt_logprobs(1);
  const Reply reply = client().Generate(generate);
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_EQ(reply.response.prompt_logprobs_size(), 5);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(score.tokens(i).SerializeAsString(),
              reply.response.prompt_logprobs(i).SerializeAsString())
        << i;
  }
}

void EveryRpcTest::ExpectTokenizeAndDetokenizeToInvertEachOther() {
  v1::TokenizeRequest request;
  request.set_prompt("日本語 and emoji 😀 in");
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(client().Tokenize(request, &tokens).ok());
  EXPECT_EQ(tokens.token_ids_size(), 23);  // golden.json
  EXPECT_EQ(tokens.tokens_size(), 23);
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(client().Detokenize(back, &text).ok());
  EXPECT_EQ(text.text(), request.prompt());
}

void EveryRpcTest::ExpectModelsToBeDescribed() {
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  v1::ListModelsResponse list;
  ASSERT_TRUE(client().models().ListModels(&context, v1::ListModelsRequest(), &list).ok());
  ASSERT_EQ(list.models_size(), 1);
  const v1::Model model = client().Model();
  EXPECT_EQ(model.SerializeAsString(), list.models(0).SerializeAsString());
  EXPECT_EQ(model.name(), GetParam().model);
  EXPECT_EQ(model.state(), v1::MODEL_STATE_WARM);
  EXPECT_EQ(model.architecture(), "MistralForCausalLM");
  EXPECT_EQ(model.quantization(), "fp8");
  EXPECT_EQ(model.vocabulary_size(), 1024u);
  EXPECT_EQ(model.tensor_parallel(), static_cast<uint32_t>(GetParam().tp));
  EXPECT_EQ(model.replicas_ready(), 1u);
  EXPECT_FALSE(model.numerics_fingerprint().empty());
}

void EveryRpcTest::ExpectHealth() {
  for (const char* service : {"", "marcoro.v1.InferenceService", "marcoro.v1.ModelService"}) {
    bool serving = false;
    EXPECT_TRUE(client().Health(service, &serving).ok()) << service;
    EXPECT_TRUE(serving) << service;
  }
  bool serving = false;
  EXPECT_EQ(client().Health("marcoro.v1.Unknown", &serving).error_code(),
            grpc::StatusCode::NOT_FOUND);
  grpc::ClientContext context;
  SetTimeout(&context, kCallTimeout);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("marcoro.v1.InferenceService");
  const auto watch = client().health().Watch(&context, request);
  Health response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), Health::SERVING);
  context.TryCancel();
  watch->Finish();
}

void EveryRpcTest::ExpectReflection() {
  // ServerReflectionRequest{list_services: "*"}: field 7, a text of one byte.
  const RawReply reply =
      CallRaw(client().channel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              "\x3a\x01*");
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_EQ(reply.messages.size(), 1u);
  for (const char* service :
       {"marcoro.v1.InferenceService", "marcoro.v1.ModelService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(reply.messages[0], HasSubstr(service));
    // ServerReflectionRequest{file_containing_symbol: service}: field 4. The answer is a descriptor
    // of the file, whose name stands in it.
    const std::string symbol = service;
    const RawReply described = CallRaw(
        client().channel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        absl::StrCat("\x22", std::string(1, static_cast<char>(symbol.size())), symbol));
    ASSERT_EQ(described.messages.size(), 1u) << service;
    EXPECT_THAT(described.messages[0], HasSubstr("/v1/")) << service;
  }
}

TEST_P(EveryRpcTest, AnswersAndAgreesWithItsSiblings) {
  ExpectGenerateAndStreamToAgree();
  ExpectScoreToAgreeWithPromptLogprobs();
  ExpectTokenizeAndDetokenizeToInvertEachOther();
  ExpectModelsToBeDescribed();
  ExpectHealth();
  ExpectReflection();
}

INSTANTIATE_TEST_SUITE_P(Models, EveryRpcTest,
                         ::testing::Values(Shape{"small", 1}, Shape{"small", 2}, Shape{"small", 4},
                                           Shape{"tiny", 1}, Shape{"tiny", 2}, Shape{"window", 1},
                                           Shape{"window", 2}),
                         Name);

}  // namespace
}  // namespace marcoro
