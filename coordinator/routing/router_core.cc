#include "coordinator/routing/router_core.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace marcoro {

using worker::v1::SequenceUpdate;

namespace {

constexpr char kNotBegun[] = "the request was not begun before its deadline";

absl::Status StatusOf(const SequenceUpdate& update) {
  const std::string& detail = update.detail();
  switch (update.error()) {
    case worker::v1::SEQUENCE_ERROR_DEADLINE:
      return absl::DeadlineExceededError(kNotBegun);
    case worker::v1::SEQUENCE_ERROR_INVALID:
      return absl::InvalidArgumentError(absl::StrCat("refused by the worker: ", detail));
    case worker::v1::SEQUENCE_ERROR_TOO_LONG:
      return absl::OutOfRangeError(
          absl::StrCat("the sequence does not fit into the worker's cache: ", detail));
    case worker::v1::SEQUENCE_ERROR_NOT_A_NUMBER:
      return absl::InternalError("the model gave a value that is not a number");
    default:
      return absl::InternalError(
          absl::StrCat("the worker reported error ", update.error(), ": ", detail));
  }
}

bool HasOutput(const SequenceUpdate& update) {
  return update.token_ids_size() > 0 || update.prompt_logprobs_size() > 0;
}

bool HasContent(const SequenceUpdate& update) {
  return HasOutput(update) || update.end() != worker::v1::SEQUENCE_END_UNSPECIFIED ||
         update.has_queue_microseconds() || update.has_cached_tokens();
}

}  // namespace

void RouterCore::Start(const std::shared_ptr<Sequence>& sequence) {
  const Clock::time_point now = Clock::now();
  sequence->give_up_at = now + absl::ToChronoNanoseconds(options_.start_timeout);
  if (const uint64_t timeout = sequence->log.queue_timeout_microseconds(); timeout > 0) {
    // A timeout beyond a century is none; the sum must not overflow.
    constexpr uint64_t kCentury = uint64_t{100} * 365 * 24 * 3600 * 1000000;
    sequence->queue_deadline = now + std::chrono::microseconds(std::min(timeout, kCentury));
  }
  Dispatch(sequence);
}

void RouterCore::Cancel(Sequence& sequence) {
  // Dropped after the lock is released: the sink's destructor is foreign code.
  std::shared_ptr<Sequence> dropped;
  absl::MutexLock lock(&mutex_);
  if (sequence.replica != nullptr) {
    const std::shared_ptr<Replica> replica = std::move(sequence.replica);
    const auto found = replica->sequences.find(sequence.id);
    dropped = std::move(found->second);
    replica->sequences.erase(found);
    replica->stream->Cancel(sequence.id);
    if (replica->retired && replica->sequences.empty()) awake_ = true;
  } else if (sequence.waiting) {
    sequence.waiting = false;
    dropped = std::move(*sequence.waiting_position);
    waiting_.erase(sequence.waiting_position);
  }
}

void RouterCore::OnMessage(Replica& replica, worker::v1::ConnectResponse message) {
  std::vector<Delivery> deliveries;
  deliveries.reserve(message.updates_size());
  {
    absl::MutexLock lock(&mutex_);
    replica.last_message = Clock::now();
    if (message.has_status()) {
      if (!replica.connected) {
        replica.connected = true;
        ++replica.connections;
        replica.failures = 0;
        replica.reconnect_delay = absl::ToChronoNanoseconds(options_.reconnect_delay_min);
        spdlog::info("worker {} connected, numerics {}", replica.address,
                     message.status().numerics_fingerprint());
      }
      replica.TakeStatus(std::move(*message.mutable_status()));
      if (replica.Ready() && !waiting_.empty()) awake_ = true;
    }
    for (SequenceUpdate& update : *message.mutable_updates()) {
      const auto found = replica.sequences.find(update.sequence_id());
      // Not there: cancelled while the update was on its way.
      if (found == replica.sequences.end()) continue;
      deliveries.push_back(Apply(replica, found->second, std::move(update)));
      if (deliveries.back().next == Delivery::Next::kContinue) continue;
      found->second->replica = nullptr;
      replica.sequences.erase(found);
      if (replica.retired && replica.sequences.empty()) awake_ = true;
    }
  }
  for (Delivery& delivery : deliveries) Deliver(std::move(delivery));
}

RouterCore::Delivery RouterCore::Apply(Replica& replica, std::shared_ptr<Sequence> sequence,
                                       SequenceUpdate update) {
  using Next = Delivery::Next;
  Sequence& s = *sequence;
  Delivery delivery;
  delivery.sequence = std::move(sequence);
  if (update.error() == worker::v1::SEQUENCE_ERROR_QUEUE_FULL) {
    s.refused_by.push_back(replica.ordinal);
    delivery.next = Next::kTryOthers;
    return delivery;
  }
  if (update.end() == worker::v1::SEQUENCE_END_ERROR) {
    const bool draining = update.error() == worker::v1::SEQUENCE_ERROR_DRAINING;
    delivery.next = draining ? Next::kResubmit : Next::kFinish;
    if (!draining) delivery.status = StatusOf(update);
    // Known before the worker's next status tells it: what it ends or refuses now would come back
    // to it at once, and be refused again, as often as a sequence may be lost.
    if (draining) replica.status.set_state(worker::v1::WORKER_STATE_DRAINING);
    // The sink hears of failures through OnDone alone; a refusal leaves nothing of the update.
    update.clear_end();
    update.clear_error();
    update.clear_detail();
    if (!HasOutput(update)) return delivery;
  } else if (update.end() != worker::v1::SEQUENCE_END_UNSPECIFIED) {
    delivery.next = Next::kFinish;
  }
  const bool had_output = s.log.has_output();
  if (absl::Status recorded = s.log.Record(&update); !recorded.ok()) {
    if (delivery.next == Next::kContinue) replica.stream->Cancel(s.id);
    delivery.next = Next::kFinish;
    delivery.status = std::move(recorded);
    return delivery;
  }
  if (HasOutput(update)) s.replays_without_progress = 0;
  if (!had_output && s.log.has_output()) s.fingerprint = replica.status.numerics_fingerprint();
  delivery.update = std::move(update);
  return delivery;
}

void RouterCore::Deliver(Delivery delivery) {
  Sequence& sequence = *delivery.sequence;
  if (HasContent(delivery.update) && !sequence.cancelled.load()) {
    sequence.sink->OnUpdate(std::move(delivery.update));
  }
  switch (delivery.next) {
    case Delivery::Next::kContinue:
      return;
    case Delivery::Next::kFinish:
      return Finish(sequence, std::move(delivery.status));
    case Delivery::Next::kResubmit:
      return Resubmit(delivery.sequence);
    case Delivery::Next::kTryOthers:
      return Dispatch(delivery.sequence);
  }
}

void RouterCore::OnClosed(const std::shared_ptr<Replica>& replica, const absl::Status& reason,
                          std::shared_ptr<void> remains) {
  std::shared_ptr<WorkerStream> stream;
  std::vector<std::shared_ptr<Sequence>> lost;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_ || replica->retired) {
      spdlog::info("worker {} disconnected", replica->address);
    } else if (replica->connected) {
      ++counters_.lost_connections;
      spdlog::warn("worker {} lost with {} sequences: {}", replica->address,
                   replica->sequences.size(), reason.ToString());
    } else if (++replica->failures == 1) {
      spdlog::warn("worker {} cannot be reached, trying on: {}", replica->address,
                   reason.ToString());
    }
    for (auto& [id, sequence] : replica->sequences) {
      sequence->replica = nullptr;
      lost.push_back(std::move(sequence));
    }
    replica->sequences.clear();
    stream = std::move(replica->stream);
    replica->remains = std::move(remains);
    replica->connected = false;
    replica->closing = false;
    replica->others = 0;
    ScheduleReconnect(*replica, Clock::now());
  }
  // Elsewhere they queue in the order in which they came.
  std::sort(lost.begin(), lost.end(), [](const auto& a, const auto& b) { return a->id < b->id; });
  for (const std::shared_ptr<Sequence>& sequence : lost) Resubmit(sequence);
  absl::MutexLock lock(&mutex_);
  --open_streams_;
}

void RouterCore::Resubmit(const std::shared_ptr<Sequence>& sequence) {
  bool complete = false;
  absl::Status failure;
  {
    absl::MutexLock lock(&mutex_);
    Sequence& s = *sequence;
    complete = s.log.complete();
    if (stopping_) {
      failure = absl::UnavailableError("the coordinator is shutting down");
    } else if (++s.replays_without_progress > options_.max_replays) {
      failure = absl::UnavailableError(
          absl::StrCat("the sequence was lost ", s.replays_without_progress, " times in a row"));
    }
    s.refused_by.clear();
    s.give_up_at =
        Clock::now() + absl::ToChronoNanoseconds(s.log.has_output() ? options_.replay_timeout
                                                                    : options_.start_timeout);
  }
  if (complete) {
    SequenceUpdate end;
    end.set_end(worker::v1::SEQUENCE_END_LENGTH);
    if (!sequence->cancelled.load()) sequence->sink->OnUpdate(std::move(end));
    return Finish(*sequence, absl::OkStatus());
  }
  if (!failure.ok()) return Finish(*sequence, std::move(failure));
  Dispatch(sequence);
}

void RouterCore::Dispatch(const std::shared_ptr<Sequence>& sequence) {
  // Each turn takes away a candidate.
  while (std::optional<Assignment> assignment = Assign(sequence)) {
    if (Send(*std::move(assignment), *sequence)) return;
  }
}

std::optional<RouterCore::Assignment> RouterCore::Assign(
    const std::shared_ptr<Sequence>& sequence) {
  Sequence& s = *sequence;
  const Clock::time_point now = Clock::now();
  absl::MutexLock lock(&mutex_);
  if (s.cancelled.load()) return std::nullopt;
  if (!s.log.begun() && now >= s.queue_deadline) {
    FinishLater(sequence, absl::DeadlineExceededError(kNotBegun));
    return std::nullopt;
  }
  std::shared_ptr<Replica> replica = Pick(s);
  if (replica == nullptr) {
    WaitOrFail(sequence, now);
    return std::nullopt;
  }
  if (s.attempted) {
    ++counters_.resubmits;
    if (s.log.has_output()) ++counters_.replays;
  }
  s.attempted = true;
  s.replica = replica;
  s.id = next_sequence_id_++;
  replica->sequences.emplace(s.id, sequence);

  Assignment assignment{
      .replica = replica, .stream = replica->stream, .submit = s.log.NextAttempt()};
  assignment.submit.set_sequence_id(s.id);
  // The time that has passed counts; a sequence that has begun once has kept its deadline.
  uint64_t queue_timeout = 0;
  if (!s.log.begun() && s.queue_deadline != Clock::time_point::max()) {
    queue_timeout = std::max<int64_t>(
        1, std::chrono::duration_cast<std::chrono::microseconds>(s.queue_deadline - now).count());
  }
  assignment.submit.set_queue_timeout_microseconds(queue_timeout);
  return assignment;
}

bool RouterCore::Send(Assignment assignment, Sequence& sequence) {
  const uint64_t id = assignment.submit.sequence_id();
  const WorkerStream::SubmitResult result = assignment.stream->Submit(std::move(assignment.submit));
  if (result == WorkerStream::SubmitResult::kQueued) {
    // A cancel may have overtaken the submit; the worker must not run what nobody waits for.
    if (sequence.cancelled.load()) assignment.stream->Cancel(id);
    return true;
  }
  absl::MutexLock lock(&mutex_);
  Replica& replica = *assignment.replica;
  // Not there any more: cancelled, or taken on by OnClosed.
  if (replica.sequences.erase(id) == 0) return true;
  sequence.replica = nullptr;
  if (result == WorkerStream::SubmitResult::kFull) {
    sequence.refused_by.push_back(replica.ordinal);
  } else {
    replica.closing = true;
  }
  return false;
}

void RouterCore::WaitOrFail(const std::shared_ptr<Sequence>& sequence, Clock::time_point now) {
  Sequence& s = *sequence;
  s.waits_for_room = !s.refused_by.empty();
  s.refused_by.clear();
  if (!s.log.has_output()) {
    if (s.waits_for_room) {
      return FinishLater(sequence, absl::ResourceExhaustedError("the workers' queues are full"));
    }
    if (waiting_.size() >= options_.max_waiting) {
      return FinishLater(sequence, absl::UnavailableError(
                                       "no worker is ready, and too many requests wait for one"));
    }
  }
  s.retry_at = now;
  if (s.waits_for_room) s.retry_at += absl::ToChronoNanoseconds(options_.full_retry_interval);
  s.waiting = true;
  s.waiting_position = waiting_.insert(waiting_.end(), sequence);
  awake_ = true;
}

bool RouterCore::IsCandidate(const Replica& replica, const Sequence& sequence) const {
  if (!replica.Ready() || replica.retired) return false;
  if (sequence.log.has_output() && replica.status.numerics_fingerprint() != sequence.fingerprint) {
    return false;
  }
  return std::find(sequence.refused_by.begin(), sequence.refused_by.end(), replica.ordinal) ==
         sequence.refused_by.end();
}

std::shared_ptr<Replica> RouterCore::Pick(const Sequence& sequence) {
  std::vector<ReplicaLoad> loads;
  std::vector<const std::shared_ptr<Replica>*> candidates;
  for (const std::shared_ptr<Replica>& replica : replicas_) {
    if (!IsCandidate(*replica, sequence)) continue;
    loads.push_back(replica->Load());
    candidates.push_back(&replica);
  }
  if (candidates.empty()) return nullptr;
  return *candidates[policy_->Pick(loads, sequence.affinity)];
}

void RouterCore::FinishLater(std::shared_ptr<Sequence> sequence, absl::Status status) {
  finished_.emplace_back(std::move(sequence), std::move(status));
  awake_ = true;
}

void RouterCore::Finish(Sequence& sequence, absl::Status status) {
  if (!sequence.cancelled.load()) sequence.sink->OnDone(std::move(status));
  sequence.sink.reset();
}

}  // namespace marcoro
