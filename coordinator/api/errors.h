// Errors as clients see them: a gRPC code, a message, and google.rpc details (ErrorInfo,
// BadRequest, RetryInfo) that travel as payloads of an absl::Status until the edge.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"

namespace grpc {
class Status;
class ServerContextBase;
}  // namespace grpc

namespace marcoro {

// Every ErrorInfo carries this domain.
inline constexpr absl::string_view kErrorDomain = "marcoro";

// Values of ErrorInfo.reason.
namespace reason {
inline constexpr absl::string_view kInvalidField = "INVALID_FIELD";
inline constexpr absl::string_view kInvalidUtf8 = "INVALID_UTF8";
inline constexpr absl::string_view kMalformedRequest = "MALFORMED_REQUEST";
inline constexpr absl::string_view kModelNotFound = "MODEL_NOT_FOUND";
inline constexpr absl::string_view kNoTokenizer = "NO_TOKENIZER";
inline constexpr absl::string_view kNoChatTemplate = "NO_CHAT_TEMPLATE";
inline constexpr absl::string_view kDraining = "DRAINING";
inline constexpr absl::string_view kTooManyRequests = "TOO_MANY_REQUESTS";
inline constexpr absl::string_view kQuotaExceeded = "QUOTA_EXCEEDED";
inline constexpr absl::string_view kQueueFull = "QUEUE_FULL";
inline constexpr absl::string_view kNoReplica = "NO_REPLICA";
inline constexpr absl::string_view kDeadline = "DEADLINE";
inline constexpr absl::string_view kSlowReader = "SLOW_READER";
inline constexpr absl::string_view kModelFailure = "MODEL_FAILURE";
inline constexpr absl::string_view kRefusedByWorker = "REFUSED_BY_WORKER";
}  // namespace reason

// The status with an ErrorInfo of that reason.
absl::Status WithReason(absl::Status status, absl::string_view reason);

// The ErrorInfo's reason; empty if it has none.
std::string ReasonOf(const absl::Status& status);

// The status with a RetryInfo: the client may try again after the delay.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// A status that a router or worker gave for a sequence, with the reason and the retry delay that
// belong to its code.
absl::Status WithRoutingDetails(absl::Status status);

// At most `limit` bytes of a client's text for an error message, cut between characters, with "…"
// where something is missing.
std::string Shortened(absl::string_view text, size_t limit = 64);

// Collects what is wrong with a request's fields. Keeps the first 16, so that the trailers stay
// under the 8 KB that clients accept.
class FieldViolations {
 public:
  static constexpr int kMax = 16;

  // `field` is a path such as "chat.messages[2].role".
  void Add(absl::string_view field, absl::string_view description);
  bool empty() const { return total_ == 0; }
  // OK if there are none, otherwise INVALID_ARGUMENT with ErrorInfo and BadRequest.
  absl::Status ToStatus(absl::string_view reason = reason::kInvalidField) const;

 private:
  google::rpc::BadRequest bad_request_;
  int total_ = 0;
};

// INVALID_ARGUMENT about one field.
absl::Status FieldError(absl::string_view field, absl::string_view description);

// The status for the wire, its details in grpc-status-details-bin.
grpc::Status ToGrpcStatus(const absl::Status& status);

// As ToGrpcStatus; besides, a RESOURCE_EXHAUSTED with a RetryInfo sets the trailer
// grpc-retry-pushback-ms, which gRPC's own retry policies obey. Call once, right before the call is
// finished.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase* context);

}  // namespace marcoro
