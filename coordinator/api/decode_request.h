// Bytes to a request message. gRPC's own decoding answers a message that does not parse with
// UNIMPLEMENTED and no text; here the client learns what is wrong with which field.
#pragma once

#include "absl/status/status.h"

namespace google::protobuf {
class Message;
}
namespace grpc {
class ByteBuffer;
}

namespace marcoro {

// Parses `bytes` into `*request`. INVALID_ARGUMENT with ErrorInfo and BadRequest if a string field
// is not valid UTF-8 (named by its path) or the bytes are no such message.
absl::Status DecodeRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* request);

}  // namespace marcoro
