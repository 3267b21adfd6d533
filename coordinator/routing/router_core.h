// The moving parts of the router: which sequence is on which replica, what waits, and the thread
// that keeps house.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/routing/policy.h"
#include "coordinator/routing/replica.h"
#include "coordinator/routing/router.h"
#include "coordinator/routing/worker_router.h"

namespace marcoro {

// One lock for everything, taken once for each message of a worker, not for each token. Sinks and
// streams are called without it, but for WorkerStream::Cancel.
class RouterCore final : public std::enable_shared_from_this<RouterCore> {
 public:
  RouterCore(RouterOptions options, std::unique_ptr<Policy> policy);

  // Starts the thread that keeps house.
  void Begin();
  // Fails what is in flight and waits until no callback runs.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  void Start(const std::shared_ptr<Sequence>& sequence) ABSL_LOCKS_EXCLUDED(mutex_);
  // After the sequence's `cancelled` was set.
  void Cancel(Sequence& sequence) ABSL_LOCKS_EXCLUDED(mutex_);

  // The replicas there are from now on. None at all: those that are connected stay, because a name
  // server that knows nothing proves less than a worker that answers.
  void SetAddresses(std::vector<std::string> addresses) ABSL_LOCKS_EXCLUDED(mutex_);

  ReplicaSummary Summary() const ABSL_LOCKS_EXCLUDED(mutex_);
  RouterStatistics Statistics() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  class StreamListener;

  // What a worker's update means for its sequence, to be told after the lock is released.
  struct Delivery {
    enum class Next { kContinue, kFinish, kResubmit, kTryOthers };
    std::shared_ptr<Sequence> sequence;
    worker::v1::SequenceUpdate update;
    Next next = Next::kContinue;
    absl::Status status;
  };

  // A sequence assigned to a replica, and what to send there.
  struct Assignment {
    std::shared_ptr<Replica> replica;
    std::shared_ptr<WorkerStream> stream;
    worker::v1::Submit submit;
  };

  using Finished = std::pair<std::shared_ptr<Sequence>, absl::Status>;

  // What the housekeeping thread found to do, to be done after the lock is released.
  struct Chores {
    bool empty() const {
      return start.empty() && close.empty() && finish.empty() && dispatch.empty() &&
             remains.empty();
    }
    std::vector<std::shared_ptr<WorkerStream>> start;
    std::vector<std::shared_ptr<WorkerStream>> close;
    std::vector<Finished> finish;
    std::vector<std::shared_ptr<Sequence>> dispatch;
    // Only to be let go of, last and on this thread.
    std::vector<std::shared_ptr<void>> remains;
  };

  // router_core.cc: sequences and what workers say of them.

  void OnMessage(Replica& replica, worker::v1::ConnectResponse message) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnClosed(const std::shared_ptr<Replica>& replica, const absl::Status& reason,
                std::shared_ptr<void> remains) ABSL_LOCKS_EXCLUDED(mutex_);
  Delivery Apply(Replica& replica, std::shared_ptr<Sequence> sequence,
                 worker::v1::SequenceUpdate update) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Deliver(Delivery delivery) ABSL_LOCKS_EXCLUDED(mutex_);
  // The attempt was lost; goes on elsewhere, unless it is over or has been lost too often.
  void Resubmit(const std::shared_ptr<Sequence>& sequence) ABSL_LOCKS_EXCLUDED(mutex_);

  // Brings the sequence, which is nowhere, to a replica; otherwise it waits or fails.
  void Dispatch(const std::shared_ptr<Sequence>& sequence) ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Assignment> Assign(const std::shared_ptr<Sequence>& sequence)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // False: the sequence is nowhere again, and this replica is no candidate for it now.
  bool Send(Assignment assignment, Sequence& sequence) ABSL_LOCKS_EXCLUDED(mutex_);
  void WaitOrFail(const std::shared_ptr<Sequence>& sequence, Clock::time_point now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsCandidate(const Replica& replica, const Sequence& sequence) const;
  std::shared_ptr<Replica> Pick(const Sequence& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Leaves OnDone to the housekeeping thread.
  void FinishLater(std::shared_ptr<Sequence> sequence, absl::Status status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Finish(Sequence& sequence, absl::Status status);

  // router_chores.cc: replicas that come and go, and everything that time brings.

  void KeepHouse() ABSL_LOCKS_EXCLUDED(mutex_);
  Chores CollectChores(Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CollectReplicaChores(Clock::time_point now, Chores& chores)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CollectWaitingChores(Clock::time_point now, Chores& chores)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(Chores chores) ABSL_LOCKS_EXCLUDED(mutex_);
  Clock::time_point NextChore() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ScheduleReconnect(Replica& replica, Clock::time_point now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status GiveUpStatus(const Sequence& sequence) const;

  const RouterOptions options_;

  mutable absl::Mutex mutex_;
  const std::unique_ptr<Policy> policy_ ABSL_PT_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Something happened that may be a chore.
  bool awake_ ABSL_GUARDED_BY(mutex_) = false;
  // By ascending ordinal.
  std::vector<std::shared_ptr<Replica>> replicas_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_ordinal_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t next_sequence_id_ ABSL_GUARDED_BY(mutex_) = 1;
  // Streams whose OnClosed has not returned.
  int open_streams_ ABSL_GUARDED_BY(mutex_) = 0;
  std::list<std::shared_ptr<Sequence>> waiting_ ABSL_GUARDED_BY(mutex_);
  std::vector<Finished> finished_ ABSL_GUARDED_BY(mutex_);
  std::minstd_rand random_ ABSL_GUARDED_BY(mutex_);
  // Its counters; the rest is filled in when asked for.
  RouterStatistics counters_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace marcoro
