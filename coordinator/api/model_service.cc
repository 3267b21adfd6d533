#include "coordinator/api/call_registry.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/services.h"
#include "coordinator/api/unary_call.h"
#include "coordinator/api/valid_request.h"
#include "coordinator/routing/router.h"
#include "marcoro/v1/model.grpc.pb.h"

namespace marcoro {
namespace {

using v1::ModelService;
using RawModelService = ModelService::WithRawCallbackMethod_ListModels<
    ModelService::WithRawCallbackMethod_GetModel<ModelService::Service>>;

// A model without a ready replica is loading as long as one says so, or has not been heard of.
v1::ModelState StateOf(const ReplicaSummary& replicas, bool draining) {
  if (draining || replicas.draining) return v1::MODEL_STATE_DRAINING;
  if (replicas.ready > 0) return v1::MODEL_STATE_WARM;
  return replicas.loading ? v1::MODEL_STATE_LOADING : v1::MODEL_STATE_COLD;
}

v1::Model Describe(const ApiContext& api) {
  const ServedModel& served = api.model;
  const ReplicaSummary replicas = api.router.Summary();
  v1::Model model;
  model.set_name(served.name);
  model.set_state(StateOf(replicas, api.calls.draining()));
  model.set_architecture(served.architecture);
  model.set_parameter_count(replicas.newest.parameter_count());
  model.set_quantization(replicas.newest.quantization());
  model.set_context_length(ContextLength(api));
  model.set_license(served.license);
  model.set_concurrency_cost(served.concurrency_cost);
  model.set_vocabulary_size(served.vocabulary_size);
  if (served.chat_template != nullptr) {
    model.set_chat_template(std::string(served.chat_template->name()));
  }
  model.set_checkpoint(served.checkpoint);
  model.set_numerics_fingerprint(replicas.newest.numerics_fingerprint());
  model.set_tensor_parallel(replicas.newest.tensor_parallel());
  model.set_replicas_ready(static_cast<uint32_t>(replicas.ready));
  return model;
}

class ModelServiceImpl final : public RawModelService {
 public:
  explicit ModelServiceImpl(const ApiContext& api) : api_(api) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* answer) override {
    return AnswerNow<v1::ListModelsRequest>(
        api_.metrics, ApiMethod::kListModels, context, request, answer,
        [this](const v1::ListModelsRequest&) -> absl::StatusOr<v1::ListModelsResponse> {
          v1::ListModelsResponse response;
          *response.add_models() = Describe(api_);
          return response;
        });
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* answer) override {
    return AnswerNow<v1::GetModelRequest>(
        api_.metrics, ApiMethod::kGetModel, context, request, answer,
        [this](const v1::GetModelRequest& parsed) -> absl::StatusOr<v1::GetModelResponse> {
          if (absl::Status status = CheckModelName(parsed.name(), api_.model); !status.ok()) {
            return status;
          }
          v1::GetModelResponse response;
          *response.mutable_model() = Describe(api_);
          return response;
        });
  }

 private:
  const ApiContext& api_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeModelService(const ApiContext& api) {
  return std::make_unique<ModelServiceImpl>(api);
}

}  // namespace marcoro
