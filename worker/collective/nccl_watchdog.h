// Looks after collectives that run on a GPU, where nobody waits for them on the host.
#pragma once

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace marcoro {

// When the newest operation that was queued should have ended. Thread-safe.
class QueuedWork {
 public:
  static constexpr absl::Duration kGrace = absl::Milliseconds(200);

  explicit QueuedWork(absl::Duration timeout) : timeout_(timeout) {}

  // The owner queued something. `mark` puts a mark behind it, while no other thread looks.
  void Note(absl::Time now, const std::function<void()>& mark) ABSL_LOCKS_EXCLUDED(mutex_);
  // DEADLINE_EXCEEDED if something was queued longer than the timeout ago and is_done() says that
  // its mark has not been passed. What check_peers() says, if it has been saying so for kGrace:
  // what a peer queued before it ended may yet be done, and a peer that left when all was done is
  // not missed. Errors of is_done() are passed on.
  absl::Status Check(absl::Time now, const std::function<absl::StatusOr<bool>()>& is_done,
                     const std::function<absl::Status()>& check_peers) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const absl::Duration timeout_;
  absl::Mutex mutex_;
  absl::Time queued_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time lost_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();  // when a peer was missed
};

// A thread that asks, until something fails.
class NcclWatchdog {
 public:
  struct Options {
    // Called every poll_interval.
    std::function<absl::Status()> probe;
    // Called once, with the probe's first failure. The default lets those who ask see the status.
    std::function<void(const absl::Status&)> on_failure = [](const absl::Status&) {};
    // Called after that: ends what will not end by itself.
    std::function<void()> abort = [] {};
    absl::Duration poll_interval = absl::Milliseconds(20);
  };

  explicit NcclWatchdog(Options options);
  ~NcclWatchdog();
  NcclWatchdog(const NcclWatchdog&) = delete;
  NcclWatchdog& operator=(const NcclWatchdog&) = delete;

  // OK until the probe failed.
  absl::Status status() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace marcoro
