#include "worker/group/watchdog.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace marcoro {

Watchdog::Watchdog(Options options) : options_(std::move(options)) {
  thread_ = std::thread([this] { Run(); });
}

Watchdog::~Watchdog() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void Watchdog::Arm(const char* what) {
  what_.store(what, std::memory_order_relaxed);
  Kick();
}

void Watchdog::Kick() {
  deadline_.store(absl::ToUnixNanos(options_.now() + options_.timeout), std::memory_order_release);
}

void Watchdog::Disarm() { deadline_.store(kDisarmed, std::memory_order_release); }

bool Watchdog::Check() {
  int64_t deadline = deadline_.load(std::memory_order_acquire);
  if (deadline == kDisarmed || absl::ToUnixNanos(options_.now()) < deadline) return false;
  const char* what = what_.load(std::memory_order_relaxed);
  // Not if the work went on at this very moment.
  if (!deadline_.compare_exchange_strong(deadline, kDisarmed)) return false;
  options_.on_hang(absl::StrCat(what, " took longer than ", absl::FormatDuration(options_.timeout),
                                ": a rank of the group hangs"));
  return true;
}

void Watchdog::Run() {
  absl::MutexLock lock(&mutex_);
  while (!mutex_.AwaitWithTimeout(absl::Condition(&stopping_), options_.poll_interval)) {
    mutex_.Unlock();
    Check();
    mutex_.Lock();
  }
}

void Watchdog::ExitProcess(const std::string& message) {
  const std::string line = absl::StrCat("watchdog: ", message, "; this process ends\n");
  // Whatever is locked in the hanging process stays locked, so nothing is cleaned up.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
  _exit(kExitCode);
}

}  // namespace marcoro
