// Keeps the processes of one server running: units of processes that live and die together.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "deploy/cli/restart_policy.h"

namespace marcoro {

// Processes that are useless without each other: a coordinator, or the ranks of one tensor-parallel
// group.
struct Unit {
  std::string name;                                 // for log lines: "coordinator", "replica 0"
  std::vector<std::vector<std::string>> processes;  // program and arguments of each
  std::function<bool()>
      ready;  // asked a few times a second while the unit is not known to be ready; short
};

struct SupervisorOptions {
  // How long processes may take to drain, besides a margin, before they are killed.
  absl::Duration drain_timeout = absl::Seconds(30);
  std::function<void()> on_ready;  // called once, when every unit has been ready
};

// Owns the child processes. One thread: the one that constructs it and calls Run.
class Supervisor {
 public:
  // Blocks SIGTERM, SIGINT and SIGCHLD, which Run waits for, in this thread and those it starts
  // from now on. Call it before any other thread starts, gRPC's included: a thread without it would
  // take the signal, and end the process without a drain.
  static void BlockSignals();

  // The first unit is drained before the others are told to stop. Signals are blocked.
  Supervisor(std::vector<Unit> units, SupervisorOptions options);

  // Starts everything, starts again what dies, and returns when all processes are gone: OK after
  // SIGTERM or SIGINT, otherwise which unit was given up and why.
  absl::Status Run();

 private:
  struct Running {
    Unit unit;
    std::vector<pid_t> pids;  // 0: not running
    RestartPolicy policy;
    bool ready = false;
    bool failing = false;  // a process of it died; the rest is being killed
    absl::Time start_at = absl::InfiniteFuture();

    bool alive() const;
  };

  absl::Status Start(Running* running);
  // Waits for a signal, at most for the time given; 0 if none came.
  int WaitForSignal(absl::Duration timeout);
  void ReapChildren();
  void OnExit(pid_t pid, int status);
  void OnUnitGone(Running* running);
  void StartDue();
  void PollReady();
  void Signal(const Running& running, int signal);
  bool AnyAlive() const;
  void StopAll();
  // Waits until the unit (or, if null, every unit) is gone; kills what is left at the deadline or
  // at a second signal.
  void AwaitGone(const Running* running, absl::Time deadline);
  void KillAll();

  std::vector<Running> units_;
  const SupervisorOptions options_;
  absl::Status failure_;
  bool stopping_ = false;
  bool reported_ready_ = false;
};

}  // namespace marcoro
