// SIGTERM and SIGINT as events of one thread instead of handlers.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

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

 private:
  void Wait();

  std::function<void()> handler_;
  std::atomic<bool> handling_{false};
  std::atomic<bool> closing_{false};
  std::thread thread_;
  std::thread handler_thread_;
};

}  // namespace marcoro
