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
  waiter_ = std::thread([this] { Wait(); });
}

TerminationSignals::~TerminationSignals() {
  Release();
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  pthread_kill(waiter_.native_handle(), SIGTERM);
  waiter_.join();
}

void TerminationSignals::Handle(std::function<void()> handler) {
  absl::MutexLock lock(&mutex_);
  handle_ = std::move(handler);
  state_ = State::kHandler;
}

void TerminationSignals::Release() {
  std::thread handler;
  {
    absl::MutexLock lock(&mutex_);
    state_ = State::kReleased;
    handler.swap(handler_);
  }
  if (handler.joinable()) handler.join();
  absl::MutexLock lock(&mutex_);
  handle_ = nullptr;
}

void TerminationSignals::Wait() {
  const sigset_t signals = Signals();
  while (true) {
    int signal = 0;
    sigwait(&signals, &signal);
    absl::MutexLock lock(&mutex_);
    if (closing_) return;
    if (state_ == State::kNoHandler) _exit(0);
    if (state_ != State::kHandler) _exit(1);
    state_ = State::kHandled;
    handler_ = std::thread(handle_);
  }
}

}  // namespace marcoro
