#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/api/generate_call.h"
#include "coordinator/api/services.h"
#include "coordinator/api/unary_call.h"
#include "coordinator/api/valid_request.h"
#include "marcoro/v1/inference.grpc.pb.h"

namespace marcoro {
namespace {

using v1::InferenceService;

// Every method takes raw bytes, so that a request that does not parse gets an answer that says why.
using RawInferenceService = InferenceService::WithRawCallbackMethod_Generate<
    InferenceService::WithRawCallbackMethod_GenerateStream<
        InferenceService::WithRawCallbackMethod_Score<
            InferenceService::WithRawCallbackMethod_Tokenize<
                InferenceService::WithRawCallbackMethod_Detokenize<InferenceService::Service>>>>>;

absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                              const ServedModel& model) {
  absl::StatusOr<EncodedInput> input = ParseTokenize(request, model);
  if (!input.ok()) return input.status();
  v1::TokenizeResponse response;
  for (const uint32_t id : input->ids) {
    response.add_token_ids(id);
    response.add_tokens(model.tokenizer->TokenText(static_cast<int32_t>(id)));
  }
  if (request.has_chat()) response.set_rendered(std::move(input->text));
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                  const ServedModel& model) {
  if (absl::Status status = CheckDetokenize(request, model); !status.ok()) return status;
  const std::vector<int32_t> ids(request.token_ids().begin(), request.token_ids().end());
  const bool skip_special = !request.has_skip_special_tokens() || request.skip_special_tokens();
  v1::DetokenizeResponse response;
  response.set_text(model.tokenizer->Decode(ids, skip_special));
  return response;
}

class InferenceServiceImpl final : public RawInferenceService {
 public:
  explicit InferenceServiceImpl(const ApiContext& api) : api_(api) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* answer) override {
    return StartGenerate(api_, context, request, answer);
  }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override {
    return StartGenerateStream(api_, context, request);
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* answer) override {
    return StartScore(api_, context, request, answer);
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* answer) override {
    return AnswerNow<v1::TokenizeRequest>(api_.metrics, ApiMethod::kTokenize, context, request,
                                          answer, [this](const v1::TokenizeRequest& parsed) {
                                            return marcoro::Tokenize(parsed, api_.model);
                                          });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* answer) override {
    return AnswerNow<v1::DetokenizeRequest>(api_.metrics, ApiMethod::kDetokenize, context, request,
                                            answer, [this](const v1::DetokenizeRequest& parsed) {
                                              return marcoro::Detokenize(parsed, api_.model);
                                            });
  }

 private:
  const ApiContext& api_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(const ApiContext& api) {
  return std::make_unique<InferenceServiceImpl>(api);
}

}  // namespace marcoro
