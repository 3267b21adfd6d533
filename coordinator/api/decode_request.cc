#include "coordinator/api/decode_request.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/api/errors.h"
#include "coordinator/text/utf8.h"

namespace marcoro {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// No message of the API nests deeper.
constexpr int kMaxDepth = 16;

struct Fault {
  bool invalid_utf8 = false;
  std::string path;  // empty: the message as a whole
};

// Walks the wire format of bytes that did not parse, to say why. Returns false at the first fault.
bool Walk(const Descriptor& message, absl::string_view bytes, const std::string& prefix, int depth,
          Fault* fault) {
  CodedInputStream input(reinterpret_cast<const uint8_t*>(bytes.data()),
                         static_cast<int>(bytes.size()));
  std::map<int, int> seen;  // occurrences by field number
  while (const uint32_t tag = input.ReadTag()) {
    const int number = WireFormatLite::GetTagFieldNumber(tag);
    const FieldDescriptor* field = message.FindFieldByNumber(number);
    std::string path = prefix;
    if (field != nullptr) {
      path = absl::StrCat(prefix, prefix.empty() ? "" : ".", field->name());
      if (field->is_repeated()) absl::StrAppend(&path, "[", seen[number]++, "]");
    }
    fault->path = path;
    const bool nested = field != nullptr && (field->type() == FieldDescriptor::TYPE_STRING ||
                                             field->type() == FieldDescriptor::TYPE_MESSAGE);
    if (!nested ||
        WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&input, tag)) return false;
      continue;
    }
    uint32_t length = 0;
    const int start = input.ReadVarint32(&length) ? input.CurrentPosition() : -1;
    if (start < 0 || length > bytes.size() - start || !input.Skip(static_cast<int>(length))) {
      return false;
    }
    const absl::string_view value = bytes.substr(start, length);
    if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
      if (depth == kMaxDepth || !Walk(*field->message_type(), value, path, depth + 1, fault)) {
        return false;
      }
    } else if (!IsValidUtf8(value)) {
      fault->invalid_utf8 = true;
      return false;
    }
  }
  fault->path = prefix;
  return input.ConsumedEntireMessage() && input.CurrentPosition() == static_cast<int>(bytes.size());
}

std::string Flatten(const grpc::ByteBuffer& buffer) {
  std::string bytes;
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace

absl::Status DecodeRequest(const grpc::ByteBuffer& bytes, google::protobuf::Message* request) {
  {
    grpc::ByteBuffer copy(bytes);  // shares the slices; a reader consumes its buffer
    grpc::ProtoBufferReader reader(&copy);
    if (reader.status().ok() && request->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  }
  Fault fault;
  Walk(*request->GetDescriptor(), Flatten(bytes), "", 0, &fault);
  FieldViolations violations;
  if (fault.invalid_utf8) {
    violations.Add(fault.path, "is not valid UTF-8");
    return violations.ToStatus(reason::kInvalidUtf8);
  }
  violations.Add(fault.path, absl::StrCat("the bytes are no valid ",
                                          request->GetDescriptor()->full_name(), " message"));
  return violations.ToStatus(reason::kMalformedRequest);
}

}  // namespace marcoro
