// The public gRPC services.
#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "coordinator/api/api_context.h"

namespace marcoro {

// marcoro.v1.InferenceService. `api` outlives the service.
std::unique_ptr<grpc::Service> MakeInferenceService(const ApiContext& api);

// marcoro.v1.ModelService.
std::unique_ptr<grpc::Service> MakeModelService(const ApiContext& api);

}  // namespace marcoro
