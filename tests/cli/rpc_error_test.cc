#include "deploy/cli/rpc_error.h"

#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace marcoro {
namespace {

constexpr int kInvalidArgument = 3;
constexpr int kResourceExhausted = 8;
constexpr int kUnavailable = 14;

class Details {
 public:
  template <typename Message>
  Details& With(const Message& message) {
    status_.add_details()->PackFrom(message);
    return *this;
  }
  std::string Bytes() const { return status_.SerializeAsString(); }

 private:
  google::rpc::Status status_;
};

google::rpc::ErrorInfo Reason(const char* reason) {
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("marcoro");
  return info;
}

void AddViolation(google::rpc::BadRequest* request, const char* field, const char* description) {
  auto* violation = request->add_field_violations();
  violation->set_field(field);
  violation->set_description(description);
}

TEST(DescribeRpcErrorTest, WithoutDetailsItIsCodeAndMessage) {
  const absl::Status status = DescribeRpcError(kUnavailable, "no worker", "");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "UNAVAILABLE: no worker");
}

TEST(DescribeRpcErrorTest, ReasonAndRetryDelayAreTold) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(1);
  retry.mutable_retry_delay()->set_nanos(500'000'000);
  const std::string details = Details().With(Reason("QUEUE_FULL")).With(retry).Bytes();
  EXPECT_EQ(DescribeRpcError(kResourceExhausted, "the queue is full", details).message(),
            "RESOURCE_EXHAUSTED: the queue is full (reason QUEUE_FULL; try again after 1.5s)");
}

TEST(DescribeRpcErrorTest, FieldsThatTheMessageNamesAlreadyAreNotRepeated) {
  google::rpc::BadRequest request;
  AddViolation(&request, "top_p", "must be in (0, 1], is 3");
  AddViolation(&request, "n", "must be in [1, 16], is 99");
  const std::string details = Details().With(Reason("INVALID_FIELD")).With(request).Bytes();
  EXPECT_EQ(
      DescribeRpcError(kInvalidArgument, "top_p: must be in (0, 1], is 3 (and 1 more)", details)
          .message(),
      "INVALID_ARGUMENT: top_p: must be in (0, 1], is 3 (and 1 more) "
      "(reason INVALID_FIELD; n: must be in [1, 16], is 99)");
}

TEST(DescribeRpcErrorTest, GarbageAndUnknownDetailsAreLeftOut) {
  EXPECT_EQ(DescribeRpcError(kUnavailable, "gone", "\xff\xff garbage").message(),
            "UNAVAILABLE: gone");
  google::rpc::Status status;
  status.add_details()->set_type_url("type.googleapis.com/some.Other");
  EXPECT_EQ(DescribeRpcError(kUnavailable, "gone", status.SerializeAsString()).message(),
            "UNAVAILABLE: gone");
}

TEST(DescribeRpcErrorTest, ItIsOneLineWhateverTheServerSays) {
  EXPECT_EQ(DescribeRpcError(kUnavailable, "a\nb\tc\x1b[31m", "").message(),
            "UNAVAILABLE: a b c [31m");
}

TEST(DescribeRpcErrorTest, AnUnknownCodeIsShownAsANumber) {
  EXPECT_EQ(DescribeRpcError(99, "odd", "").message(), "code 99: odd");
  EXPECT_FALSE(DescribeRpcError(99, "odd", "").ok());
}

}  // namespace
}  // namespace marcoro
