#include "coordinator/api/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/api/call_registry.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/services.h"
#include "coordinator/routing/router.h"
#include "grpc/health/v1/health.pb.h"
#include "marcoro/v1/inference.pb.h"
#include "marcoro/v1/model.pb.h"

namespace marcoro {
namespace {

// How often readiness and stuck writes are looked at.
constexpr absl::Duration kChoreInterval = absl::Milliseconds(50);
// How long a client may take to read its last messages once the drain's time is over.
constexpr absl::Duration kLastMessages = absl::Seconds(1);

constexpr int kMaxMetadataBytes = 16 << 10;
constexpr int kMaxStreamsPerConnection = 1024;
constexpr int kKeepaliveMilliseconds = 60'000;
constexpr int kKeepaliveTimeoutMilliseconds = 20'000;
constexpr int kMinPingIntervalMilliseconds = 5'000;

const char* const kReadinessServices[] = {"marcoro.v1.InferenceService", "marcoro.v1.ModelService"};

void SetLimits(const ApiServerOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(options.max_message_bytes);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMilliseconds);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMilliseconds);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kMinPingIntervalMilliseconds);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Two servers on one port would each get some of the connections, and nobody would be told.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

class ApiServerImpl final : public ApiServer {
 public:
  ApiServerImpl(const ApiServerParts& parts, const ApiLimits& limits)
      : parts_(parts),
        api_{parts.model, parts.router, parts.admission, parts.metrics, calls_, limits} {}

  ~ApiServerImpl() override {
    if (server_ == nullptr) return;
    StopChores();
    calls_.StartDraining();
    calls_.EndAllEarly();
    server_->Shutdown(std::chrono::system_clock::now());
  }

  absl::Status Listen(const ApiServerOptions& options) {
    static std::once_flag plugins;
    std::call_once(plugins, [] {
      grpc::EnableDefaultHealthCheckService(true);
      // gRPC answers it without a descriptor; reflection needs one, which is linked if it is used.
      google::protobuf::LinkMessageReflection<grpc::health::v1::HealthCheckRequest>();
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    });
    inference_ = MakeInferenceService(api_);
    models_ = MakeModelService(api_);
    grpc::ServerBuilder builder;
    SetLimits(options, &builder);
    builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(inference_.get());
    builder.RegisterService(models_.get());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", options.listen,
                       "; is the port in use? choose another with --listen"));
    }
    SetReady(false);
    chores_ = std::thread([this] { RunChores(); });
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  bool draining() const override { return calls_.draining(); }
  uint64_t requests_in_flight() const override { return calls_.size(); }

  void Drain(absl::Duration timeout) override {
    SetReady(false);
    calls_.StartDraining();
    SetReady(false);  // the chores may have thought otherwise in between
    spdlog::info("draining: {} requests in flight, at most {}", calls_.size(),
                 absl::FormatDuration(timeout));
    if (!calls_.WaitUntilEmpty(timeout)) {
      spdlog::warn("drain timeout: {} requests end early", calls_.size());
      calls_.EndAllEarly();
      calls_.WaitUntilEmpty(kLastMessages);
    }
    StopChores();
    server_->Shutdown(std::chrono::system_clock::now());
    spdlog::info("drained");
  }

 private:
  void RunChores() {
    const auto stopping = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return stopping_; };
    ReplicaSummary before;
    while (true) {
      ReplicaSummary replicas = parts_.router.Summary();
      LogChanges(before, replicas);
      SetReady(replicas.ready > 0 && !calls_.draining());
      before = std::move(replicas);
      calls_.CheckWrites();
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping), kChoreInterval)) return;
    }
  }

  void LogChanges(const ReplicaSummary& before, const ReplicaSummary& now) const {
    if (before.ready != now.ready) {
      spdlog::info("replicas ready: {} of {}", now.ready, now.configured);
    }
    const uint32_t vocabulary = now.newest.vocabulary_size();
    if (vocabulary == before.newest.vocabulary_size() || vocabulary == 0) return;
    if (vocabulary != parts_.model.vocabulary_size) {
      spdlog::error("a worker's vocabulary has {} ids, that of {} has {}: not the same model",
                    vocabulary, parts_.model.checkpoint, parts_.model.vocabulary_size);
    }
  }

  void StopChores() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    if (chores_.joinable()) chores_.join();
  }

  // Under the lock, so that a late "ready" of the chores cannot undo the drain's "not ready".
  void SetReady(bool ready) {
    absl::MutexLock lock(&mutex_);
    ready = ready && !calls_.draining();
    if (ready_ == ready) return;
    ready_ = ready;
    for (const char* service : kReadinessServices) {
      server_->GetHealthCheckService()->SetServingStatus(service, ready);
    }
  }

  const ApiServerParts parts_;
  CallRegistry calls_;
  const ApiContext api_;
  std::unique_ptr<grpc::Service> inference_;
  std::unique_ptr<grpc::Service> models_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<bool> ready_ ABSL_GUARDED_BY(mutex_);
  std::thread chores_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ApiServer>> ApiServer::Start(const ApiServerParts& parts,
                                                            const ApiServerOptions& options) {
  auto server = std::make_unique<ApiServerImpl>(parts, options.limits);
  if (absl::Status status = server->Listen(options); !status.ok()) return status;
  return std::unique_ptr<ApiServer>(std::move(server));
}

}  // namespace marcoro
