#include "coordinator/api/errors.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <optional>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/duration.pb.h"
#include "google/rpc/status.pb.h"

namespace marcoro {
namespace {

constexpr absl::string_view kTypeUrlPrefix = "type.googleapis.com/";

template <typename Message>
std::string TypeUrl() {
  return absl::StrCat(kTypeUrlPrefix, Message::descriptor()->full_name());
}

template <typename Message>
absl::Status WithDetail(absl::Status status, const Message& detail) {
  const std::string bytes = detail.SerializeAsString();
  // By way of a view: Cord's constructor from std::string is a template that clang and the library,
  // built by GCC, name differently.
  status.SetPayload(TypeUrl<Message>(), absl::Cord(absl::string_view(bytes)));
  return status;
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const auto payload = status.GetPayload(TypeUrl<google::rpc::RetryInfo>());
  google::rpc::RetryInfo info;
  if (!payload || !info.ParseFromString(std::string(*payload))) return std::nullopt;
  return absl::Seconds(info.retry_delay().seconds()) +
         absl::Nanoseconds(info.retry_delay().nanos());
}

}  // namespace

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(std::string(kErrorDomain));
  return WithDetail(std::move(status), info);
}

std::string ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(TypeUrl<google::rpc::ErrorInfo>());
  google::rpc::ErrorInfo info;
  if (!payload || !info.ParseFromString(std::string(*payload))) return "";
  return info.reason();
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  const int64_t nanos = absl::ToInt64Nanoseconds(delay);
  info.mutable_retry_delay()->set_seconds(nanos / 1'000'000'000);
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  return WithDetail(std::move(status), info);
}

absl::Status WithRoutingDetails(absl::Status status) {
  constexpr absl::Duration kRetryDelay = absl::Seconds(1);
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return WithRetryDelay(WithReason(std::move(status), reason::kQueueFull), kRetryDelay);
    case absl::StatusCode::kUnavailable:
      return WithRetryDelay(WithReason(std::move(status), reason::kNoReplica), kRetryDelay);
    case absl::StatusCode::kDeadlineExceeded:
      return WithReason(std::move(status), reason::kDeadline);
    case absl::StatusCode::kInternal:
      return WithReason(std::move(status), reason::kModelFailure);
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return WithReason(std::move(status), reason::kRefusedByWorker);
    default:
      return status;
  }
}

std::string Shortened(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(text.substr(0, end), "…");
}

void FieldViolations::Add(absl::string_view field, absl::string_view description) {
  ++total_;
  if (bad_request_.field_violations_size() == kMax) return;
  google::rpc::BadRequest::FieldViolation* violation = bad_request_.add_field_violations();
  violation->set_field(std::string(field));
  violation->set_description(std::string(description));
}

absl::Status FieldViolations::ToStatus(absl::string_view reason) const {
  if (empty()) return absl::OkStatus();
  const google::rpc::BadRequest::FieldViolation& first = bad_request_.field_violations(0);
  std::string message = first.field().empty()
                            ? first.description()
                            : absl::StrCat(first.field(), ": ", first.description());
  if (total_ > 1) absl::StrAppend(&message, " (and ", total_ - 1, " more)");
  return WithDetail(WithReason(absl::InvalidArgumentError(message), reason), bad_request_);
}

absl::Status FieldError(absl::string_view field, absl::string_view description) {
  FieldViolations violations;
  violations.Add(field, description);
  return violations.ToStatus();
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(std::string(status.message()));
  status.ForEachPayload([&details](absl::string_view type_url, const absl::Cord& payload) {
    google::protobuf::Any* any = details.add_details();
    any->set_type_url(std::string(type_url));
    any->set_value(std::string(payload));
  });
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      details.details().empty() ? std::string() : details.SerializeAsString());
}

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase* context) {
  if (absl::IsResourceExhausted(status)) {
    if (std::optional<absl::Duration> delay = RetryDelay(status)) {
      context->AddTrailingMetadata("grpc-retry-pushback-ms",
                                   absl::StrCat(absl::ToInt64Milliseconds(*delay)));
    }
  }
  return ToGrpcStatus(status);
}

}  // namespace marcoro
