// Ends a process that hangs inside a step.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace marcoro {

// A thread that looks whether armed work has passed its deadline. Arm, Kick and Disarm cost a clock
// reading and belong to one thread, the one that does the work.
class Watchdog {
 public:
  struct Options {
    // Longest time between Arm or Kick and the next Kick or Disarm.
    absl::Duration timeout = absl::Seconds(60);
    // How often the thread looks, in real time.
    absl::Duration poll_interval = absl::Seconds(1);
    // Called once, from the watchdog's thread, with one line that says what hung. The default
    // prints it to standard error and ends the process at once with kExitCode.
    std::function<void(const std::string&)> on_hang = ExitProcess;
    std::function<absl::Time()> now = absl::Now;
  };
  static constexpr int kExitCode = 70;  // EX_SOFTWARE

  explicit Watchdog(Options options);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Starts the clock; `what` is a string literal, named in the message.
  void Arm(const char* what);
  // Starts it anew.
  void Kick();
  void Disarm();

  // What the thread does each poll_interval: calls on_hang if the deadline has passed, then
  // disarms. True if it did.
  bool Check();

  // Armed for a scope.
  class Armed {
   public:
    Armed(Watchdog* watchdog, const char* what) : watchdog_(watchdog) { watchdog_->Arm(what); }
    ~Armed() { watchdog_->Disarm(); }
    Armed(const Armed&) = delete;
    Armed& operator=(const Armed&) = delete;

   private:
    Watchdog* const watchdog_;
  };

  [[noreturn]] static void ExitProcess(const std::string& message);

 private:
  void Run();

  static constexpr int64_t kDisarmed = INT64_MAX;

  const Options options_;
  std::atomic<int64_t> deadline_{kDisarmed};  // nanoseconds since the epoch of options_.now
  std::atomic<const char*> what_{""};
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace marcoro
