// Score, Tokenize, Detokenize, the model service and reflection.
#include <grpcpp/generic/generic_stub.h>

#include "tests/coordinator/api/api_fixture.h"

namespace marcoro {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

class ServicesTest : public ApiTest {
 protected:
  grpc::Status Tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
    grpc::ClientContext context;
    return inference_->Tokenize(&context, request, response);
  }
  grpc::Status Score(const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    grpc::ClientContext context;
    return inference_->Score(&context, request, response);
  }
};

TEST_F(ServicesTest, ScoreGivesEveryTokenItsLogprob) {
  router_->SetScript([](const worker::v1::Submit& submit) {
    worker::v1::SequenceUpdate update;
    for (int i = 0; i < submit.prompt_ids_size(); ++i) {
      worker::v1::TokenLogprobs* logprobs = update.add_prompt_logprobs();
      if (i > 0) logprobs->set_logprob(-1.0f * static_cast<float>(i));
      logprobs->add_top()->set_token_id(20);
    }
    update.set_end(worker::v1::SEQUENCE_END_LENGTH);
    return FakeRouter::Script{update};
  });
  v1::ScoreRequest request;
  request.set_prompt("the same");
  request.set_top(1);
  v1::ScoreResponse response;
  const grpc::Status status = Score(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const worker::v1::Submit submit = router_->submits().at(0);
  EXPECT_EQ(submit.max_tokens(), 0u);
  EXPECT_EQ(submit.prompt_logprobs(), 1u);
  ASSERT_EQ(response.tokens_size(), submit.prompt_ids_size());
  EXPECT_EQ(response.tokens(0).token(), "<s>");
  EXPECT_FALSE(response.tokens(0).has_logprob());
  EXPECT_FLOAT_EQ(response.tokens(1).logprob(), -1);
  EXPECT_EQ(response.tokens(1).top(0).token_id(), 20u);
  EXPECT_EQ(response.usage().prompt_tokens(), static_cast<uint32_t>(submit.prompt_ids_size()));
  EXPECT_EQ(response.usage().generated_tokens(), 0u);
}

TEST_F(ServicesTest, ScoreTakesAWholeContext) {
  v1::ScoreRequest request;
  for (int i = 0; i < 513; ++i) request.mutable_token_ids()->add_ids(5);
  v1::ScoreResponse response;
  EXPECT_THAT(ErrorOf(Score(request, &response)).fields, ElementsAre("token_ids.ids"));
  router_->SetFailure(absl::UnavailableError("reached the router"));
  request.mutable_token_ids()->mutable_ids()->Truncate(512);
  EXPECT_EQ(ErrorOf(Score(request, &response)).code, StatusCode::UNAVAILABLE);
  request.set_top(21);
  EXPECT_THAT(ErrorOf(Score(request, &response)).fields, ElementsAre("top"));
}

TEST_F(ServicesTest, TokenizeAndBack) {
  v1::TokenizeRequest request;
  request.set_prompt("Hello world");
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(Tokenize(request, &tokens).ok());
  EXPECT_EQ(tokens.token_ids(0), 1u);
  EXPECT_EQ(tokens.tokens(0), "<s>");
  ASSERT_EQ(tokens.token_ids_size(), tokens.tokens_size());
  EXPECT_EQ(tokens.rendered(), "");
  std::string joined;
  for (int i = 1; i < tokens.tokens_size(); ++i) joined += tokens.tokens(i);
  EXPECT_EQ(joined, " Hello world");

  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext context;
  ASSERT_TRUE(inference_->Detokenize(&context, back, &text).ok());
  EXPECT_EQ(text.text(), "Hello world");
  back.set_skip_special_tokens(false);
  grpc::ClientContext second;
  ASSERT_TRUE(inference_->Detokenize(&second, back, &text).ok());
  EXPECT_THAT(text.text(), testing::StartsWith("<s>"));
}

TEST_F(ServicesTest, TokenizeShowsWhatTheTemplateMadeOfAChat) {
  v1::TokenizeRequest request;
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hello");
  v1::TokenizeResponse response;
  ASSERT_TRUE(Tokenize(request, &response).ok());
  EXPECT_EQ(response.rendered(), "### Instruction:\n\nhello\n\n### Response:\n");
  request.mutable_chat()->set_add_generation_prompt(false);
  ASSERT_TRUE(Tokenize(request, &response).ok());
  EXPECT_EQ(response.rendered(), "### Instruction:\n\nhello\n\n");
}

TEST_F(ServicesTest, AnEmptyTextHasNoTokens) {
  v1::TokenizeRequest request;
  request.set_prompt("");
  request.set_add_bos(false);
  v1::TokenizeResponse response;
  ASSERT_TRUE(Tokenize(request, &response).ok());
  EXPECT_EQ(response.token_ids_size(), 0);
}

TEST_F(ServicesTest, DetokenizeRefusesIdsOutsideOfTheVocabulary) {
  v1::DetokenizeRequest request;
  request.add_token_ids(5);
  request.add_token_ids(1024);
  v1::DetokenizeResponse response;
  grpc::ClientContext context;
  const CallError error = ErrorOf(inference_->Detokenize(&context, request, &response));
  EXPECT_EQ(error.code, StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(error.fields, ElementsAre("token_ids[1]"));
}

TEST_F(ServicesTest, TheModelSaysWhatItIs) {
  ReplicaSummary summary;
  summary.configured = 3;
  summary.ready = 2;
  summary.newest.set_context_length(384);
  summary.newest.set_quantization("fp8");
  summary.newest.set_parameter_count(123456);
  summary.newest.set_tensor_parallel(4);
  summary.newest.set_numerics_fingerprint("bits");
  router_->SetSummary(summary);
  grpc::ClientContext context;
  v1::ListModelsResponse list;
  ASSERT_TRUE(models_->ListModels(&context, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 1);
  const v1::Model& model = list.models(0);
  EXPECT_EQ(model.name(), "tiny");
  EXPECT_EQ(model.state(), v1::MODEL_STATE_WARM);
  EXPECT_EQ(model.architecture(), "MistralForCausalLM");
  EXPECT_EQ(model.context_length(), 384u);
  EXPECT_EQ(model.vocabulary_size(), 1024u);
  EXPECT_EQ(model.chat_template(), "alpaca");
  EXPECT_EQ(model.quantization(), "fp8");
  EXPECT_EQ(model.parameter_count(), 123456u);
  EXPECT_EQ(model.tensor_parallel(), 4u);
  EXPECT_EQ(model.numerics_fingerprint(), "bits");
  EXPECT_EQ(model.replicas_ready(), 2u);
  EXPECT_EQ(model.concurrency_cost(), 1u);
  EXPECT_EQ(model.checkpoint(), DataPath("tiny"));
}

TEST_F(ServicesTest, TheModelsStateFollowsItsReplicas) {
  const auto state = [this](const ReplicaSummary& summary) {
    router_->SetSummary(summary);
    grpc::ClientContext context;
    v1::GetModelResponse response;
    EXPECT_TRUE(models_->GetModel(&context, {}, &response).ok());
    return response.model().state();
  };
  ReplicaSummary summary;
  EXPECT_EQ(state(summary), v1::MODEL_STATE_COLD);
  summary.loading = true;
  EXPECT_EQ(state(summary), v1::MODEL_STATE_LOADING);
  summary.ready = 1;
  EXPECT_EQ(state(summary), v1::MODEL_STATE_WARM);
  summary.ready = 0;
  summary.draining = true;
  EXPECT_EQ(state(summary), v1::MODEL_STATE_DRAINING);
}

TEST_F(ServicesTest, AnotherModelIsNotFound) {
  grpc::ClientContext context;
  v1::GetModelRequest request;
  request.set_name("other");
  v1::GetModelResponse response;
  const CallError error = ErrorOf(models_->GetModel(&context, request, &response));
  EXPECT_EQ(error.code, StatusCode::NOT_FOUND);
  EXPECT_EQ(error.reason, "MODEL_NOT_FOUND");
}

// grpcurl and ghz find their way by reflection.
TEST_F(ServicesTest, ReflectionListsTheServices) {
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(channel_);
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  const grpc::Slice list_services("\x3a\x01*");  // ServerReflectionRequest{list_services: "*"}
  call->Write(grpc::ByteBuffer(&list_services, 1), nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(queue.Next(&tag, &ok) && ok);
  grpc::Slice bytes;
  ASSERT_TRUE(answer.DumpToSingleSlice(&bytes).ok());
  const std::string text(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  EXPECT_THAT(text, HasSubstr("marcoro.v1.InferenceService"));
  EXPECT_THAT(text, HasSubstr("marcoro.v1.ModelService"));
  EXPECT_THAT(text, HasSubstr("grpc.health.v1.Health"));
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
}

}  // namespace
}  // namespace marcoro
