#include "tests/coordinator/routing/fake_worker.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <list>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "marcoro/worker/v1/worker.grpc.pb.h"
#include "tests/coordinator/routing/fake_sequence.h"

namespace marcoro {
namespace {

using worker::v1::ConnectRequest;
using worker::v1::ConnectResponse;
using worker::v1::SequenceError;
using worker::v1::SequenceUpdate;
using worker::v1::Submit;
using worker::v1::WorkerStatus;

constexpr absl::Duration kWaitLimit = absl::Seconds(30);

}  // namespace

class FakeWorker::Service final : public worker::v1::WorkerService::Service {
 public:
  explicit Service(FakeWorkerOptions options) : options_(std::move(options)) {
    Listen();
    ticker_ = std::thread([this] { Tick(); });
  }

  ~Service() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    ticker_.join();
    Kill();
  }

  grpc::Status Connect(grpc::ServerContext* context,
                       grpc::ServerReaderWriter<ConnectResponse, ConnectRequest>* stream) override {
    Connection connection{.context = context, .stream = stream, .sequences = {}};
    {
      absl::MutexLock lock(&mutex_);
      if (dead_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "dead");
      connections_.push_back(&connection);
      ++connection_count_;
      if (!silent_) SendStatus(connection);
    }
    ConnectRequest request;
    while (stream->Read(&request)) Take(connection, std::move(request));
    absl::MutexLock lock(&mutex_);
    connections_.remove(&connection);
    return grpc::Status::OK;
  }

  void Step(int steps) {
    absl::MutexLock lock(&mutex_);
    for (int i = 0; i < steps; ++i) StepOnce();
  }

  void SetState(worker::v1::WorkerState state) {
    absl::MutexLock lock(&mutex_);
    options_.state = state;
    SendStatusToAll();
  }

  void SetFingerprint(std::string fingerprint) {
    absl::MutexLock lock(&mutex_);
    options_.fingerprint = std::move(fingerprint);
    SendStatusToAll();
  }

  void RefuseWith(std::optional<SequenceError> error) {
    absl::MutexLock lock(&mutex_);
    refusal_ = error;
  }

  void FailAll(SequenceError error) {
    absl::MutexLock lock(&mutex_);
    for (Connection* connection : connections_) {
      ConnectResponse response;
      for (const FakeSequence& sequence : connection->sequences) {
        AddError(sequence.id(), error, response);
      }
      connection->sequences.clear();
      connection->stream->Write(response);
    }
  }

  void SetSilent(bool silent) {
    absl::MutexLock lock(&mutex_);
    silent_ = silent;
    if (!silent) SendStatusToAll();
  }

  void DieAfterTokens(int tokens) {
    absl::MutexLock lock(&mutex_);
    tokens_to_live_ = tokens;
    if (tokens == 0) Die();
  }

  void Kill() {
    {
      absl::MutexLock lock(&mutex_);
      Die();
    }
    if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::Now()));
    server_.reset();
  }

  void Restart() {
    if (server_ == nullptr) Listen();
    absl::MutexLock lock(&mutex_);
    dead_ = false;
    tokens_to_live_ = -1;
  }

  int port() const { return port_; }

  // Runs under the lock; the predicate reads what it is given.
  struct Seen {
    const std::vector<Submit>& submits;
    const std::vector<uint64_t>& cancels;
    int connections;
    int streams;
    int sequences;
  };
  template <typename Function>
  auto Read(Function function) const {
    absl::MutexLock lock(&mutex_);
    return function(Snapshot());
  }
  template <typename Predicate>
  bool Wait(Predicate predicate) const {
    absl::MutexLock lock(&mutex_);
    const auto holds = [&]()
                           ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return predicate(Snapshot()); };
    return mutex_.AwaitWithTimeout(absl::Condition(&holds), kWaitLimit);
  }

 private:
  struct Connection {
    grpc::ServerContext* context;
    grpc::ServerReaderWriter<ConnectResponse, ConnectRequest>* stream;
    std::list<FakeSequence> sequences;
  };

  void Listen() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port_), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }

  Seen Snapshot() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return {submits_, cancels_, connection_count_, static_cast<int>(connections_.size()),
            static_cast<int>(SequenceCount())};
  }

  size_t SequenceCount() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    size_t count = 0;
    for (const Connection* connection : connections_) count += connection->sequences.size();
    return count;
  }

  WorkerStatus Status() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    WorkerStatus status;
    status.set_state(options_.state);
    status.set_numerics_fingerprint(options_.fingerprint);
    status.set_tensor_parallel(options_.tensor_parallel);
    status.set_context_length(options_.context_length);
    status.set_vocabulary_size(options_.vocabulary_size);
    status.set_quantization(options_.quantization);
    const uint32_t count = static_cast<uint32_t>(SequenceCount());
    status.set_running(std::min(count, options_.max_running));
    status.set_waiting(count - status.running());
    status.set_max_running(options_.max_running);
    status.set_max_waiting(options_.max_waiting);
    return status;
  }

  void SendStatus(Connection& connection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ConnectResponse response;
    *response.mutable_status() = Status();
    connection.stream->Write(response);
  }

  void SendStatusToAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (silent_) return;
    for (Connection* connection : connections_) SendStatus(*connection);
  }

  static void AddError(uint64_t sequence_id, SequenceError error, ConnectResponse& response) {
    SequenceUpdate* update = response.add_updates();
    update->set_sequence_id(sequence_id);
    update->set_end(worker::v1::SEQUENCE_END_ERROR);
    update->set_error(error);
    update->set_detail("as the test wants it");
  }

  void Take(Connection& connection, ConnectRequest request) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (request.has_cancel()) {
      const uint64_t id = request.cancel().sequence_id();
      cancels_.push_back(id);
      connection.sequences.remove_if(
          [id](const FakeSequence& sequence) { return sequence.id() == id; });
      return;
    }
    Submit& submit = *request.mutable_submit();
    submits_.push_back(submit);
    const bool full = SequenceCount() >= options_.max_running + options_.max_waiting;
    if (refusal_.has_value() || full) {
      ConnectResponse response;
      AddError(submit.sequence_id(), refusal_.value_or(worker::v1::SEQUENCE_ERROR_QUEUE_FULL),
               response);
      connection.stream->Write(response);
      return;
    }
    connection.sequences.emplace_back(std::move(submit), options_.vocabulary_size);
  }

  void StepOnce() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    uint32_t room = options_.max_running;
    for (Connection* connection : connections_) {
      ConnectResponse response;
      for (auto sequence = connection->sequences.begin();
           sequence != connection->sequences.end() && room > 0 && tokens_to_live_ != 0; --room) {
        SequenceUpdate* update = response.add_updates();
        sequence->Advance(options_, *update);
        if (tokens_to_live_ > 0) tokens_to_live_ -= update->token_ids_size();
        const bool ended = update->end() != worker::v1::SEQUENCE_END_UNSPECIFIED;
        sequence = ended ? connection->sequences.erase(sequence) : std::next(sequence);
      }
      if (response.updates_size() > 0) connection->stream->Write(response);
    }
    if (tokens_to_live_ == 0) Die();
  }

  void Die() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    dead_ = true;
    tokens_to_live_ = -1;
    for (Connection* connection : connections_) {
      connection->sequences.clear();
      connection->context->TryCancel();
    }
  }

  void Tick() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    absl::Time next_status = absl::Now();
    while (!stopping_) {
      const bool stepping = options_.automatic && !silent_ && SequenceCount() > 0;
      if (stepping) StepOnce();
      if (absl::Now() >= next_status) {
        SendStatusToAll();
        next_status = absl::Now() + options_.status_interval;
      }
      const auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || (options_.automatic && options_.step_interval == absl::ZeroDuration() &&
                             !silent_ && SequenceCount() > 0);
      };
      const absl::Time next_step =
          options_.automatic ? absl::Now() + options_.step_interval : absl::InfiniteFuture();
      const bool paced = options_.step_interval > absl::ZeroDuration();
      mutex_.AwaitWithDeadline(absl::Condition(&wake),
                               paced ? std::min(next_step, next_status) : next_status);
    }
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::thread ticker_;

  mutable absl::Mutex mutex_;
  FakeWorkerOptions options_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool dead_ ABSL_GUARDED_BY(mutex_) = false;
  bool silent_ ABSL_GUARDED_BY(mutex_) = false;
  // Negative: for ever.
  int tokens_to_live_ ABSL_GUARDED_BY(mutex_) = -1;
  std::optional<SequenceError> refusal_ ABSL_GUARDED_BY(mutex_);
  std::list<Connection*> connections_ ABSL_GUARDED_BY(mutex_);
  int connection_count_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Submit> submits_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> cancels_ ABSL_GUARDED_BY(mutex_);
};

FakeWorker::FakeWorker(FakeWorkerOptions options)
    : service_(std::make_unique<Service>(std::move(options))) {}
FakeWorker::~FakeWorker() = default;

std::string FakeWorker::address() const { return absl::StrCat("127.0.0.1:", service_->port()); }

std::vector<uint32_t> FakeWorker::Tokens(const Submit& submit, uint32_t vocabulary_size) {
  std::vector<uint32_t> tokens(submit.generated_ids().begin(), submit.generated_ids().end());
  TokenChain chain(submit, vocabulary_size);
  while (tokens.size() < submit.max_tokens()) {
    tokens.push_back(chain.Next());
    const uint32_t generated = static_cast<uint32_t>(tokens.size());
    if (EndAfter(submit, tokens.back(), generated) != worker::v1::SEQUENCE_END_UNSPECIFIED) break;
  }
  return tokens;
}

float FakeWorker::Logprob(uint32_t token) { return -static_cast<float>(token % 1000) / 100; }

float FakeWorker::PromptLogprob(const Submit& submit, int position) {
  return -static_cast<float>((submit.prompt_ids(position) * 7 + position) % 1000) / 100;
}

void FakeWorker::Step(int steps) { service_->Step(steps); }
void FakeWorker::SetState(worker::v1::WorkerState state) { service_->SetState(state); }
void FakeWorker::SetFingerprint(std::string fingerprint) {
  service_->SetFingerprint(std::move(fingerprint));
}
void FakeWorker::RefuseWith(std::optional<SequenceError> error) { service_->RefuseWith(error); }
void FakeWorker::FailAll(SequenceError error) { service_->FailAll(error); }
void FakeWorker::SetSilent(bool silent) { service_->SetSilent(silent); }
void FakeWorker::DieAfterTokens(int tokens) { service_->DieAfterTokens(tokens); }
void FakeWorker::Kill() { service_->Kill(); }
void FakeWorker::Restart() { service_->Restart(); }

std::vector<Submit> FakeWorker::submits() const {
  return service_->Read([](const Service::Seen& seen) { return seen.submits; });
}
std::vector<uint64_t> FakeWorker::cancels() const {
  return service_->Read([](const Service::Seen& seen) { return seen.cancels; });
}
int FakeWorker::connections() const {
  return service_->Read([](const Service::Seen& seen) { return seen.connections; });
}
int FakeWorker::streams() const {
  return service_->Read([](const Service::Seen& seen) { return seen.streams; });
}
int FakeWorker::sequences() const {
  return service_->Read([](const Service::Seen& seen) { return seen.sequences; });
}

bool FakeWorker::WaitForSubmits(int count) const {
  return service_->Wait([count](const Service::Seen& seen) {
    return static_cast<int>(seen.submits.size()) >= count;
  });
}
bool FakeWorker::WaitForCancels(int count) const {
  return service_->Wait([count](const Service::Seen& seen) {
    return static_cast<int>(seen.cancels.size()) >= count;
  });
}
bool FakeWorker::WaitForConnections(int count) const {
  return service_->Wait([count](const Service::Seen& seen) { return seen.connections >= count; });
}
bool FakeWorker::WaitForStreams(int count) const {
  return service_->Wait([count](const Service::Seen& seen) { return seen.streams == count; });
}
bool FakeWorker::WaitForSequences(int count) const {
  return service_->Wait([count](const Service::Seen& seen) { return seen.sequences == count; });
}

}  // namespace marcoro
