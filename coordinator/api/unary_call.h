// Unary methods over raw bytes: decode, answer, encode, count.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/statusor.h"
#include "coordinator/api/decode_request.h"
#include "coordinator/api/encode_response.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/metrics.h"

namespace marcoro {

// Answers at once with what `handler`, absl::StatusOr<Response>(const Request&), makes of the
// request.
template <typename Request, typename Handler>
grpc::ServerUnaryReactor* AnswerNow(ApiMetrics& metrics, ApiMethod method,
                                    grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* bytes, grpc::ByteBuffer* answer,
                                    Handler handler) {
  Request request;
  absl::Status status = DecodeRequest(*bytes, &request);
  if (status.ok()) {
    auto response = handler(request);
    status = response.status();
    if (response.ok()) *answer = EncodeResponse(*response);
  }
  metrics.CountCall(method, status.code());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status, context));
  return reactor;
}

}  // namespace marcoro
