#pragma once

namespace google::protobuf {
class MessageLite;
}
namespace grpc {
class ByteBuffer;
}

namespace marcoro {

// The message's bytes, ready to send.
grpc::ByteBuffer EncodeResponse(const google::protobuf::MessageLite& response);

}  // namespace marcoro
