#include "deploy/cli/interrupt.h"

#include <csignal>

namespace marcoro {
namespace {

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler stores it");

void OnSignal(int) { interrupted.store(true); }

}  // namespace

const std::atomic<bool>& WatchForInterrupt() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before = {};
    sigaction(signal, &action, &before);
    // nohup, and shells that start jobs in the background, want it to be ignored.
    if (before.sa_handler == SIG_IGN) sigaction(signal, &before, nullptr);
  }
  return interrupted;
}

}  // namespace marcoro
