// The reactors of Generate, GenerateStream and Score.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "coordinator/api/api_context.h"
#include "coordinator/api/metrics.h"
#include "coordinator/api/valid_request.h"

namespace grpc {
class ByteBuffer;
class CallbackServerContext;
class ServerUnaryReactor;
template <class Response>
class ServerWriteReactor;
}  // namespace grpc

namespace marcoro {

// `request` and `answer` live as long as the call. `api` outlives it.
grpc::ServerUnaryReactor* StartGenerate(const ApiContext& api, grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request, grpc::ByteBuffer* answer);
grpc::ServerUnaryReactor* StartScore(const ApiContext& api, grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request, grpc::ByteBuffer* answer);
grpc::ServerWriteReactor<grpc::ByteBuffer>* StartGenerateStream(
    const ApiContext& api, grpc::CallbackServerContext* context, const grpc::ByteBuffer* request);

}  // namespace marcoro
