#include "worker/collective/nccl_watchdog.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace marcoro {

void QueuedWork::Note(absl::Time now, const std::function<void()>& mark) {
  absl::MutexLock lock(&mutex_);
  mark();
  queued_ = now;
}

absl::Status QueuedWork::Check(absl::Time now, const std::function<absl::StatusOr<bool>()>& is_done,
                               const std::function<absl::Status()>& check_peers) {
  absl::MutexLock lock(&mutex_);
  if (queued_ == absl::InfiniteFuture()) return absl::OkStatus();
  const absl::StatusOr<bool> done = is_done();
  if (!done.ok()) return done.status();
  if (*done) {
    queued_ = absl::InfiniteFuture();
    return absl::OkStatus();
  }
  if (absl::Status peers = check_peers(); !peers.ok()) {
    lost_ = std::min(lost_, now);
    if (now - lost_ >= kGrace) return peers;
  }
  if (now - queued_ <= timeout_) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("a collective on the GPU took longer than ",
                                                  absl::FormatDuration(timeout_),
                                                  ": a rank of the group hangs or is gone"));
}

NcclWatchdog::NcclWatchdog(Options options) : options_(std::move(options)) {
  thread_ = std::thread([this] { Run(); });
}

NcclWatchdog::~NcclWatchdog() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status NcclWatchdog::status() {
  absl::MutexLock lock(&mutex_);
  return status_;
}

void NcclWatchdog::Run() {
  while (true) {
    const absl::Status found = options_.probe();
    if (!found.ok()) {
      {
        absl::MutexLock lock(&mutex_);
        status_ = found;
      }
      options_.on_failure(found);
      return options_.abort();
    }
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), options_.poll_interval)) return;
  }
}

}  // namespace marcoro
