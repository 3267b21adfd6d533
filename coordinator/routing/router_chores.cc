// The router core's housekeeping: replicas that come and go, and everything that time brings.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "coordinator/routing/router_core.h"
#include "spdlog/spdlog.h"

namespace marcoro {

class RouterCore::StreamListener final : public WorkerStream::Listener {
 public:
  StreamListener(std::shared_ptr<RouterCore> core, std::shared_ptr<Replica> replica)
      : core_(std::move(core)), replica_(std::move(replica)) {}

  void OnMessage(worker::v1::ConnectResponse message) override {
    core_->OnMessage(*replica_, std::move(message));
  }
  void OnClosed(absl::Status reason, std::shared_ptr<void> remains) override {
    core_->OnClosed(replica_, reason, std::move(remains));
  }

 private:
  const std::shared_ptr<RouterCore> core_;
  const std::shared_ptr<Replica> replica_;
};

RouterCore::RouterCore(RouterOptions options, std::unique_ptr<Policy> policy)
    : options_(std::move(options)), policy_(std::move(policy)), random_(std::random_device()()) {}

void RouterCore::Begin() {
  thread_ = std::thread([this] { KeepHouse(); });
}

void RouterCore::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    awake_ = true;
  }
  // First, so that no more streams are started.
  thread_.join();
  std::vector<std::shared_ptr<WorkerStream>> streams;
  {
    absl::MutexLock lock(&mutex_);
    for (const std::shared_ptr<Replica>& replica : replicas_) {
      if (replica->stream != nullptr) streams.push_back(replica->stream);
    }
  }
  for (const std::shared_ptr<WorkerStream>& stream : streams) stream->Close();

  std::vector<Finished> finished;
  std::vector<std::shared_ptr<void>> remains;
  {
    absl::MutexLock lock(&mutex_);
    const auto all_closed = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return open_streams_ == 0;
    };
    mutex_.Await(absl::Condition(&all_closed));
    for (const std::shared_ptr<Replica>& replica : replicas_) {
      remains.push_back(std::move(replica->remains));
    }
    replicas_.clear();
    finished = std::move(finished_);
    for (std::shared_ptr<Sequence>& sequence : waiting_) {
      sequence->waiting = false;
      finished.emplace_back(std::move(sequence),
                            absl::UnavailableError("the coordinator is shutting down"));
    }
    waiting_.clear();
  }
  for (auto& [sequence, status] : finished) Finish(*sequence, std::move(status));
}

void RouterCore::SetAddresses(std::vector<std::string> addresses) {
  const Clock::time_point now = Clock::now();
  absl::MutexLock lock(&mutex_);
  for (const std::shared_ptr<Replica>& replica : replicas_) {
    const auto found = std::find(addresses.begin(), addresses.end(), replica->address);
    replica->retired = addresses.empty() ? !replica->connected : found == addresses.end();
    if (found != addresses.end()) addresses.erase(found);
  }
  for (std::string& address : addresses) {
    auto replica = std::make_shared<Replica>(std::move(address), next_ordinal_++);
    replica->reconnect_delay = absl::ToChronoNanoseconds(options_.reconnect_delay_min);
    replica->connect_at = now;
    replicas_.push_back(std::move(replica));
  }
  awake_ = true;
}

void RouterCore::KeepHouse() {
  for (;;) {
    Chores chores;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
      awake_ = false;
      const Clock::time_point now = Clock::now();
      chores = CollectChores(now);
      if (chores.empty()) {
        mutex_.AwaitWithTimeout(absl::Condition(&awake_), absl::FromChrono(NextChore() - now));
        continue;
      }
    }
    Do(std::move(chores));
  }
}

RouterCore::Chores RouterCore::CollectChores(Clock::time_point now) {
  Chores chores;
  chores.finish = std::move(finished_);
  finished_.clear();
  CollectReplicaChores(now, chores);
  CollectWaitingChores(now, chores);
  return chores;
}

void RouterCore::CollectReplicaChores(Clock::time_point now, Chores& chores) {
  for (const std::shared_ptr<Replica>& replica : replicas_) {
    if (replica->stream == nullptr) {
      if (replica->retired || now < replica->connect_at) continue;
      replica->stream =
          MakeWorkerStream(replica->address, options_.stream,
                           std::make_shared<StreamListener>(shared_from_this(), replica));
      replica->last_message = now;
      ++open_streams_;
      chores.start.push_back(replica->stream);
      if (replica->remains != nullptr) chores.remains.push_back(std::move(replica->remains));
    } else if (!replica->closing) {
      const bool silent =
          now - replica->last_message >= absl::ToChronoNanoseconds(options_.silence_timeout);
      if (!silent && !(replica->retired && replica->sequences.empty())) continue;
      if (silent && replica->connected) {
        ++counters_.silent_connections;
        spdlog::warn("worker {} has been silent for {}, giving it up", replica->address,
                     absl::FormatDuration(options_.silence_timeout));
      }
      replica->closing = true;
      chores.close.push_back(replica->stream);
    }
  }
  std::erase_if(replicas_, [&chores](const std::shared_ptr<Replica>& replica) {
    if (!replica->retired || replica->stream != nullptr) return false;
    if (replica->remains != nullptr) chores.remains.push_back(std::move(replica->remains));
    return true;
  });
}

void RouterCore::CollectWaitingChores(Clock::time_point now, Chores& chores) {
  for (auto position = waiting_.begin(); position != waiting_.end();) {
    const std::shared_ptr<Sequence>& sequence = *position;
    if (!sequence->log.begun() && now >= sequence->queue_deadline) {
      chores.finish.emplace_back(
          sequence, absl::DeadlineExceededError("the request was not begun before its deadline"));
    } else if (now >= sequence->give_up_at) {
      chores.finish.emplace_back(sequence, GiveUpStatus(*sequence));
    } else if (now >= sequence->retry_at &&
               std::any_of(replicas_.begin(), replicas_.end(),
                           [&](const auto& replica) { return IsCandidate(*replica, *sequence); })) {
      chores.dispatch.push_back(sequence);
    } else {
      ++position;
      continue;
    }
    sequence->waiting = false;
    position = waiting_.erase(position);
  }
}

void RouterCore::Do(Chores chores) {
  for (const std::shared_ptr<WorkerStream>& stream : chores.start) stream->Start();
  for (const std::shared_ptr<WorkerStream>& stream : chores.close) stream->Close();
  for (auto& [sequence, status] : chores.finish) Finish(*sequence, std::move(status));
  for (const std::shared_ptr<Sequence>& sequence : chores.dispatch) Dispatch(sequence);
}

Clock::time_point RouterCore::NextChore() const {
  // Nothing in particular: look again now and then.
  Clock::time_point next = Clock::now() + std::chrono::seconds(1);
  for (const std::shared_ptr<Replica>& replica : replicas_) {
    if (replica->stream == nullptr) {
      next = std::min(next, replica->connect_at);
    } else if (!replica->closing) {
      next = std::min(next,
                      replica->last_message + absl::ToChronoNanoseconds(options_.silence_timeout));
    }
  }
  for (const std::shared_ptr<Sequence>& sequence : waiting_) {
    next = std::min(next, sequence->give_up_at);
    if (!sequence->log.begun()) next = std::min(next, sequence->queue_deadline);
    // The others are woken when a replica becomes ready.
    if (sequence->waits_for_room) next = std::min(next, sequence->retry_at);
  }
  return next;
}

void RouterCore::ScheduleReconnect(Replica& replica, Clock::time_point now) {
  // Less up to half of the delay at random, so that coordinators do not come all at once.
  std::uniform_real_distribution<double> part(0.5, 1.0);
  replica.connect_at =
      now + std::chrono::duration_cast<Clock::duration>(replica.reconnect_delay * part(random_));
  replica.reconnect_delay = std::min<Clock::duration>(
      2 * replica.reconnect_delay, absl::ToChronoNanoseconds(options_.reconnect_delay_max));
  awake_ = true;
}

absl::Status RouterCore::GiveUpStatus(const Sequence& sequence) const {
  if (sequence.waits_for_room) {
    return absl::ResourceExhaustedError("the workers' queues stayed full");
  }
  if (sequence.log.has_output()) {
    return absl::UnavailableError(
        absl::StrCat("the worker was lost, and none of the same numerics came back within ",
                     absl::FormatDuration(options_.replay_timeout)));
  }
  return absl::UnavailableError("no worker is ready");
}

ReplicaSummary RouterCore::Summary() const {
  ReplicaSummary summary;
  int connected = 0;
  int draining = 0;
  absl::MutexLock lock(&mutex_);
  for (const std::shared_ptr<Replica>& replica : replicas_) {
    if (!replica->retired) ++summary.configured;
    if (!replica->connected) continue;
    const bool ready = replica->Ready();
    if (connected == 0 || (ready && summary.ready == 0)) summary.newest = replica->status;
    ++connected;
    if (ready) ++summary.ready;
    const worker::v1::WorkerState state = replica->status.state();
    if (state == worker::v1::WORKER_STATE_LOADING) summary.loading = true;
    if (state == worker::v1::WORKER_STATE_DRAINING) ++draining;
    summary.running += replica->status.running();
    summary.waiting += replica->status.waiting();
  }
  summary.draining = connected > 0 && draining == connected;
  return summary;
}

RouterStatistics RouterCore::Statistics() const {
  absl::MutexLock lock(&mutex_);
  RouterStatistics statistics = counters_;
  statistics.waiting = waiting_.size();
  for (const std::shared_ptr<Replica>& replica : replicas_) {
    ReplicaStatistics& entry = statistics.replicas.emplace_back();
    entry.address = replica->address;
    entry.in_flight = replica->sequences.size();
    entry.connections = replica->connections;
    if (!replica->connected) continue;
    entry.state = replica->status.state();
    entry.running = replica->status.running();
    entry.waiting = replica->status.waiting();
    entry.kv_usage = replica->status.kv_usage();
  }
  return statistics;
}

}  // namespace marcoro
