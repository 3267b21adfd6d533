#include "coordinator/api/encode_response.h"

#include <google/protobuf/message_lite.h>
#include <grpc/support/log.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_writer.h>

namespace marcoro {

grpc::ByteBuffer EncodeResponse(const google::protobuf::MessageLite& response) {
  grpc::ByteBuffer bytes;
  bool own_buffer = false;
  const grpc::Status status =
      grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::MessageLite>(
          response, &bytes, &own_buffer);
  GPR_ASSERT(status.ok());
  return bytes;
}

}  // namespace marcoro
