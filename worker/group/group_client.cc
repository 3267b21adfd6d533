#include "worker/group/group_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "marcoro/worker/v1/group.grpc.pb.h"

namespace marcoro {
namespace {

namespace v1 = ::marcoro::worker::v1;

// Longest time for one attempt, so that a connection which leads nowhere is given up and tried
// anew.
constexpr absl::Duration kAttemptTimeout = absl::Seconds(10);
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(50);
constexpr absl::Duration kMaxBackoff = absl::Seconds(1);

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

bool MayBeRepeated(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED ||
         status.error_code() == grpc::StatusCode::CANCELLED;
}

// Makes the call until it succeeds, is refused, or `timeout` has passed. All of group.proto's calls
// may be repeated.
template <typename Call>
absl::Status CallUntil(absl::Duration timeout, const Call& call) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::Duration backoff = kFirstBackoff;
  while (true) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(absl::ToChronoTime(std::min(deadline, absl::Now() + kAttemptTimeout)));
    const grpc::Status status = call(&context);
    if (status.ok()) return absl::OkStatus();
    if (!MayBeRepeated(status)) return FromGrpc(status);
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return absl::DeadlineExceededError(status.error_message());
    absl::SleepFor(std::min(backoff, left));
    backoff = std::min(2 * backoff, kMaxBackoff);
  }
}

class Client : public GroupClient {
 public:
  explicit Client(const GroupClientOptions& options) : options_(options) {
    // gRPC's own waits between connection attempts grow to two minutes.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
    // Ranks speak to each other directly; a proxy of the environment is for other traffic.
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    stub_ = v1::GroupService::NewStub(grpc::CreateCustomChannel(
        options.root_address, grpc::InsecureChannelCredentials(), arguments));
  }

  absl::Status Join(absl::Duration timeout) {
    v1::JoinRequest request;
    request.set_rank(static_cast<uint32_t>(options_.rank));
    request.set_world_size(static_cast<uint32_t>(options_.world_size));
    request.set_numerics_fingerprint(options_.fingerprint);
    request.set_host(options_.host);
    absl::BitGen random;
    request.set_instance(absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random))));
    v1::JoinResponse response;
    const absl::Status status = CallUntil(timeout, [&](grpc::ClientContext* context) {
      return stub_->Join(context, request, &response);
    });
    epoch_ = response.epoch();
    if (absl::IsDeadlineExceeded(status)) {
      return absl::DeadlineExceededError(
          absl::StrCat("rank 0 did not answer at ", options_.root_address, " within ",
                       absl::FormatDuration(timeout), ": ", status.message()));
    }
    return status;
  }

  const std::string& epoch() const override { return epoch_; }

  absl::Status Set(const std::string& key, const std::string& value) override {
    v1::SetKeyRequest request;
    request.set_epoch(epoch_);
    request.set_key(key);
    request.set_value(value);
    v1::SetKeyResponse response;
    return CallUntil(kAttemptTimeout, [&](grpc::ClientContext* context) {
      return stub_->SetKey(context, request, &response);
    });
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    v1::GetKeyRequest request;
    request.set_epoch(epoch_);
    request.set_key(key);
    v1::GetKeyResponse response;
    const absl::Status status = CallUntil(timeout, [&](grpc::ClientContext* context) {
      return stub_->GetKey(context, request, &response);
    });
    if (absl::IsDeadlineExceeded(status)) {
      return absl::DeadlineExceededError(
          absl::StrCat("key ", key, " was not set within ", absl::FormatDuration(timeout)));
    }
    if (!status.ok()) return status;
    return response.value();
  }

 private:
  const GroupClientOptions options_;
  std::unique_ptr<v1::GroupService::Stub> stub_;
  std::string epoch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GroupClient>> GroupClient::Join(const GroupClientOptions& options,
                                                               absl::Duration timeout) {
  auto client = std::make_unique<Client>(options);
  if (absl::Status status = client->Join(timeout); !status.ok()) return status;
  return client;
}

}  // namespace marcoro
