#include "coordinator/routing/worker_stream.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/client_callback.h>

#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "marcoro/worker/v1/worker.grpc.pb.h"

namespace marcoro {
namespace {

using worker::v1::ConnectRequest;
using worker::v1::ConnectResponse;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           const WorkerStreamOptions& options) {
  grpc::ChannelArguments arguments;
  // A channel of its own for each attempt: the router's backoff alone decides when to try again.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // Workers are reached directly, whatever proxy the environment names for the outside.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_interval)));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_timeout)));
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

class GrpcWorkerStream final : public WorkerStream,
                               public grpc::ClientBidiReactor<ConnectRequest, ConnectResponse>,
                               public std::enable_shared_from_this<GrpcWorkerStream> {
 public:
  GrpcWorkerStream(std::string address, const WorkerStreamOptions& options,
                   std::shared_ptr<Listener> listener)
      : address_(std::move(address)), options_(options), listener_(std::move(listener)) {}

  void Start() override {
    self_ = shared_from_this();
    {
      absl::MutexLock lock(&mutex_);
      connection_ = std::make_shared<Connection>();
      connection_->stub = worker::v1::WorkerService::NewStub(MakeChannel(address_, options_));
      connection_->stub->async()->Connect(&connection_->context, this);
      open_ = true;
    }
    // For writes, which start outside of the reactions; removed when reading ends.
    AddHold();
    StartRead(&incoming_);
    StartCall();
  }

  SubmitResult Submit(worker::v1::Submit submit) override {
    ConnectRequest request;
    *request.mutable_submit() = std::move(submit);
    const size_t bytes = request.ByteSizeLong();
    absl::MutexLock lock(&mutex_);
    if (!open_) return SubmitResult::kClosed;
    if (queue_.size() >= options_.max_queued_requests ||
        queued_bytes_ + bytes > options_.max_queued_bytes) {
      return SubmitResult::kFull;
    }
    Enqueue(std::move(request), bytes);
    return SubmitResult::kQueued;
  }

  void Cancel(uint64_t sequence_id) override {
    ConnectRequest request;
    request.mutable_cancel()->set_sequence_id(sequence_id);
    absl::MutexLock lock(&mutex_);
    // A closed stream needs no cancel: the worker drops everything that came through it.
    if (open_) Enqueue(std::move(request), 0);
  }

  void Close() override {
    absl::MutexLock lock(&mutex_);
    if (connection_ != nullptr) connection_->context.TryCancel();
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      listener_->OnMessage(std::move(incoming_));
      StartRead(&incoming_);
      return;
    }
    absl::MutexLock lock(&mutex_);
    open_ = false;
    queue_.clear();
    RemoveHold();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    // A failed write means that the stream is over; reading ends too and reports it.
    if (ok && open_) WriteNext();
  }

  void OnDone(const grpc::Status& status) override {
    std::shared_ptr<Connection> remains;
    {
      absl::MutexLock lock(&mutex_);
      remains = std::move(connection_);
    }
    listener_->OnClosed(
        absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()),
        std::move(remains));
    self_.reset();
  }

 private:
  struct Connection {
    std::unique_ptr<worker::v1::WorkerService::Stub> stub;
    grpc::ClientContext context;
  };

  struct Queued {
    ConnectRequest request;
    size_t bytes;
  };

  void Enqueue(ConnectRequest request, size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    queue_.push_back({std::move(request), bytes});
    queued_bytes_ += bytes;
    if (!writing_) WriteNext();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (queue_.empty()) return;
    outgoing_ = std::move(queue_.front().request);
    queued_bytes_ -= queue_.front().bytes;
    queue_.pop_front();
    writing_ = true;
    // More is waiting: let gRPC put it into the same system call.
    grpc::WriteOptions write_options;
    if (!queue_.empty()) write_options.set_buffer_hint();
    StartWrite(&outgoing_, write_options);
  }

  const std::string address_;
  const WorkerStreamOptions options_;
  const std::shared_ptr<Listener> listener_;

  // Keeps the reactor alive while gRPC may call it.
  std::shared_ptr<GrpcWorkerStream> self_;
  // Belongs to the read in progress.
  ConnectResponse incoming_;

  absl::Mutex mutex_;
  // Null before Start and after OnDone.
  std::shared_ptr<Connection> connection_ ABSL_GUARDED_BY(mutex_);
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  // Belongs to the write in progress while writing_.
  ConnectRequest outgoing_ ABSL_GUARDED_BY(mutex_);
  std::deque<Queued> queue_ ABSL_GUARDED_BY(mutex_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

std::shared_ptr<WorkerStream> MakeWorkerStream(std::string address,
                                               const WorkerStreamOptions& options,
                                               std::shared_ptr<WorkerStream::Listener> listener) {
  return std::make_shared<GrpcWorkerStream>(std::move(address), options, std::move(listener));
}

}  // namespace marcoro
