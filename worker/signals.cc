#include "worker/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <utility>

namespace marcoro {
namespace {

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

}  // namespace

TerminationSignals::TerminationSignals() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  thread_ = std::thread([this] { Wait(); });
}

TerminationSignals::~TerminationSignals() {
  closing_ = true;
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
  if (handler_thread_.joinable()) handler_thread_.join();
}

void TerminationSignals::Handle(std::function<void()> handler) {
  handler_ = std::move(handler);
  handling_ = true;
}

void TerminationSignals::Wait() {
  const sigset_t signals = Signals();
  while (true) {
    int signal = 0;
    sigwait(&signals, &signal);
    if (closing_) return;
    if (!handling_) _exit(0);
    if (handler_thread_.joinable()) _exit(1);
    handler_thread_ = std::thread(handler_);
  }
}

}  // namespace marcoro
