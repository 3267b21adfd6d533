// SIGTERM and SIGINT as events of one thread instead of handlers.
#pragma once

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace marcoro {

// Construct before any other thread starts: they inherit the blocked signals. Until Handle is
// called a signal ends the process with exit code 0; from then on the first one calls the handler,
// on a thread of its own, and a second one ends the process with exit code 1.
class TerminationSignals {
 public:
  TerminationSignals();
  ~TerminationSignals();
  TerminationSignals(const TerminationSignals&) = delete;
  TerminationSignals& operator=(const TerminationSignals&) = delete;

  void Handle(std::function<void()> handler);
  // Waits for a handler that runs, and lets go of it, so that what it refers to may go. From now on
  // a signal ends the process with exit code 1.
  void Release();

 private:
  enum class State { kNoHandler, kHandler, kHandled, kReleased };

  void Wait();

  absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kNoHandler;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread handler_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> handle_ ABSL_GUARDED_BY(mutex_);
  std::thread waiter_;
};

}  // namespace marcoro
