// A failed call, as one line for a person.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace marcoro {

// The text with line breaks and other control characters as spaces.
std::string OneLine(absl::string_view text);

// A status of that gRPC code whose message is the whole line: the code's name, the server's
// message, and of `details` (a serialized google.rpc.Status, as grpc-status-details-bin carries
// it; may be empty or garbage) the reason, when to try again, and the fields that the message does
// not name already.
//
//   INVALID_ARGUMENT: temperature: must be at most 100 (reason INVALID_FIELD)
absl::Status DescribeRpcError(int code, absl::string_view message, const std::string& details);

}  // namespace marcoro
