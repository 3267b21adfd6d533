#include "worker/service/worker_service.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/service/convert.h"

namespace marcoro {

using worker::v1::ConnectRequest;
using worker::v1::ConnectResponse;
using worker::v1::WorkerStatus;

// What goes up one stream. Outlives the stream itself, since the engine may still deliver to it
// while the stream ends.
class WorkerService::Outbox final : public OutputSink {
 public:
  Outbox(grpc::ServerBidiReactor<ConnectRequest, ConnectResponse>* reactor,
         grpc::CallbackServerContext* context)
      : reactor_(reactor), context_(context) {}

  void Deliver(std::vector<SequenceOutput> outputs) override {
    absl::MutexLock lock(&mutex_);
    if (reactor_ == nullptr) return;
    for (const SequenceOutput& output : outputs) ToProto(output, pending_.add_updates());
    if (pending_.updates_size() > kMaxPendingUpdates) {
      context_->TryCancel();
      return;
    }
    WriteIfIdle();
  }

  void SendStatus(const WorkerStatus& status) {
    absl::MutexLock lock(&mutex_);
    if (reactor_ == nullptr) return;
    *pending_.mutable_status() = status;
    WriteIfIdle();
  }

  void OnWriteDone(bool ok) {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) finishing_ = true;
    WriteIfIdle();
  }

  // No more writes; finishes the call once the last one is done.
  void Finish() {
    absl::MutexLock lock(&mutex_);
    finishing_ = true;
    WriteIfIdle();
  }

 private:
  void WriteIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || reactor_ == nullptr) return;
    if (finishing_) {
      std::exchange(reactor_, nullptr)->Finish(grpc::Status::OK);
      return;
    }
    if (!pending_.has_status() && pending_.updates().empty()) return;
    in_flight_.Clear();
    in_flight_.Swap(&pending_);
    writing_ = true;
    reactor_->StartWrite(&in_flight_);
  }

  absl::Mutex mutex_;
  grpc::ServerBidiReactor<ConnectRequest, ConnectResponse>* reactor_ ABSL_GUARDED_BY(mutex_);
  grpc::CallbackServerContext* const context_;
  ConnectResponse pending_ ABSL_GUARDED_BY(mutex_);
  ConnectResponse in_flight_ ABSL_GUARDED_BY(mutex_);  // gRPC reads it while writing_
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
};

// Owned by gRPC from Connect to OnDone.
class WorkerService::Connection final
    : public grpc::ServerBidiReactor<ConnectRequest, ConnectResponse> {
 public:
  Connection(WorkerService* service, grpc::CallbackServerContext* context)
      : service_(service), outbox_(std::make_shared<Outbox>(this, context)) {}

  const std::shared_ptr<Outbox>& outbox() const { return outbox_; }

  void Start() {
    outbox_->SendStatus(service_->Status());
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Leave();
      outbox_->Finish();
      return;
    }
    Handle(request_);
    StartRead(&request_);
  }

  void OnWriteDone(bool ok) override { outbox_->OnWriteDone(ok); }

  void OnCancel() override { Leave(); }

  void OnDone() override {
    Leave();
    delete this;
  }

 private:
  void Handle(const ConnectRequest& request) {
    Engine* const engine = service_->engine();
    switch (request.action_case()) {
      case ConnectRequest::kSubmit:
        return Submit(request.submit(), engine);
      case ConnectRequest::kCancel:
        if (engine != nullptr) engine->Cancel(outbox_.get(), request.cancel().sequence_id());
        return;
      case ConnectRequest::ACTION_NOT_SET:
        return;  // an action of a newer protocol
    }
  }

  void Submit(const worker::v1::Submit& submit, Engine* engine) {
    if (engine == nullptr)
      return Refuse(submit, EndError::kDraining, "the worker is loading its model");
    auto converted = ToEngineRequest(submit, service_->facts_.vocabulary_size);
    if (!converted.ok()) {
      return Refuse(submit, EndError::kInvalid, std::string(converted.status().message()));
    }
    converted->sink = outbox_;
    engine->Submit(*std::move(converted));
  }

  void Refuse(const worker::v1::Submit& submit, EndError error, std::string detail) {
    SequenceOutput output;
    output.client_id = submit.sequence_id();
    output.end = EndReason::kError;
    output.error = error;
    output.detail = std::move(detail);
    outbox_->Deliver({std::move(output)});
  }

  // The coordinator is gone: so are its sequences.
  void Leave() {
    service_->Remove(outbox_);
    if (Engine* engine = service_->engine(); engine != nullptr) engine->CancelAll(outbox_.get());
  }

  WorkerService* const service_;
  const std::shared_ptr<Outbox> outbox_;
  ConnectRequest request_;
};

WorkerService::WorkerService(WorkerFacts facts, absl::Duration status_interval)
    : facts_(std::move(facts)),
      status_interval_(status_interval),
      publisher_([this] { PublishStatus(); }) {}

WorkerService::~WorkerService() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  publisher_.join();
}

void WorkerService::Attach(Engine* engine) {
  {
    absl::MutexLock lock(&mutex_);
    engine_ = engine;
  }
  BroadcastStatus();
}

void WorkerService::Detach() {
  absl::MutexLock lock(&mutex_);
  engine_ = nullptr;
}

void WorkerService::Drain() {
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
    if (engine_ != nullptr) engine_->Drain();
  }
  BroadcastStatus();
}

WorkerStatus WorkerService::Status() const {
  WorkerStatus status;
  status.set_numerics_fingerprint(facts_.numerics_fingerprint);
  status.set_tensor_parallel(facts_.tensor_parallel);
  status.set_context_length(facts_.context_length);
  status.set_vocabulary_size(facts_.vocabulary_size);
  status.set_parameter_count(facts_.parameter_count);
  status.set_quantization(facts_.quantization);
  status.set_max_waiting(facts_.max_waiting);
  status.set_max_running(facts_.max_running);
  // Asked under the lock, so that Detach waits for those who ask.
  absl::MutexLock lock(&mutex_);
  status.set_state(draining_ ? worker::v1::WORKER_STATE_DRAINING
                             : worker::v1::WORKER_STATE_LOADING);
  if (engine_ == nullptr) return status;
  const EngineSnapshot snapshot = engine_->snapshot();
  // An engine that stops by itself, because its group is lost, drains too.
  if (!draining_ && !snapshot.draining) status.set_state(worker::v1::WORKER_STATE_READY);
  if (snapshot.draining) status.set_state(worker::v1::WORKER_STATE_DRAINING);
  const SchedulerCounters& counters = snapshot.scheduler;
  status.set_running(counters.running);
  status.set_waiting(counters.waiting);
  if (counters.kv_blocks_total > 0) {
    status.set_kv_usage(static_cast<float>(counters.kv_blocks_used) /
                        static_cast<float>(counters.kv_blocks_total));
  }
  return status;
}

grpc::ServerBidiReactor<ConnectRequest, ConnectResponse>* WorkerService::Connect(
    grpc::CallbackServerContext* context) {
  auto* const connection = new Connection(this, context);
  {
    absl::MutexLock lock(&mutex_);
    outboxes_.insert(connection->outbox());
  }
  connection->Start();
  return connection;
}

Engine* WorkerService::engine() const {
  absl::MutexLock lock(&mutex_);
  return engine_;
}

void WorkerService::Remove(const std::shared_ptr<Outbox>& outbox) {
  absl::MutexLock lock(&mutex_);
  outboxes_.erase(outbox);
}

void WorkerService::BroadcastStatus() {
  const WorkerStatus status = Status();
  std::vector<std::shared_ptr<Outbox>> outboxes;
  {
    absl::MutexLock lock(&mutex_);
    outboxes.assign(outboxes_.begin(), outboxes_.end());
  }
  for (const auto& outbox : outboxes) outbox->SendStatus(status);
}

void WorkerService::PublishStatus() {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(&closing_), status_interval_);
      if (closing_) return;
    }
    BroadcastStatus();
  }
}

}  // namespace marcoro
