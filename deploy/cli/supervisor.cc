#include "deploy/cli/supervisor.h"

#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "deploy/cli/child_process.h"
#include "spdlog/spdlog.h"

namespace marcoro {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(100);
constexpr absl::Duration kMargin = absl::Seconds(5);

sigset_t Signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals, signal);
  return signals;
}

}  // namespace

bool Supervisor::Running::alive() const {
  return std::any_of(pids.begin(), pids.end(), [](pid_t pid) { return pid != 0; });
}

void Supervisor::BlockSignals() {
  const sigset_t signals = Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

Supervisor::Supervisor(std::vector<Unit> units, SupervisorOptions options)
    : options_(std::move(options)) {
  for (Unit& unit : units) {
    units_.emplace_back();
    units_.back().pids.resize(unit.processes.size(), 0);
    units_.back().unit = std::move(unit);
  }
}

absl::Status Supervisor::Run() {
  for (Running& running : units_) {
    if (failure_.ok()) failure_ = Start(&running);
  }
  while (failure_.ok() && !stopping_) {
    const int signal = WaitForSignal(kPoll);
    stopping_ = signal == SIGTERM || signal == SIGINT;
    ReapChildren();
    StartDue();
    PollReady();
  }
  if (!failure_.ok()) {
    KillAll();
    AwaitGone(nullptr, absl::Now() + kMargin);
    return failure_;
  }
  StopAll();
  return absl::OkStatus();
}

absl::Status Supervisor::Start(Running* running) {
  running->start_at = absl::InfiniteFuture();
  running->ready = false;
  running->failing = false;
  for (size_t i = 0; i < running->pids.size(); ++i) {
    const absl::StatusOr<pid_t> pid = StartProcess(running->unit.processes[i]);
    if (!pid.ok()) return pid.status();
    running->pids[i] = *pid;
  }
  return absl::OkStatus();
}

int Supervisor::WaitForSignal(absl::Duration timeout) {
  const sigset_t signals = Signals();
  const timespec time = absl::ToTimespec(timeout);
  return std::max(0, sigtimedwait(&signals, nullptr, &time));
}

void Supervisor::ReapChildren() {
  int status = 0;
  while (true) {
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return;
    OnExit(pid, status);
  }
}

void Supervisor::OnExit(pid_t pid, int status) {
  for (Running& running : units_) {
    for (size_t i = 0; i < running.pids.size(); ++i) {
      if (running.pids[i] != pid) continue;
      running.pids[i] = 0;
      if (!stopping_ && failure_.ok() && !running.failing) {
        spdlog::warn("{}: process {} {}", running.unit.name, i, DescribeExit(status));
        running.failing = true;
        Signal(running, SIGKILL);
      }
      if (!running.alive() && !stopping_ && failure_.ok()) OnUnitGone(&running);
      return;
    }
  }
}

void Supervisor::OnUnitGone(Running* running) {
  const std::optional<absl::Duration> delay = running->policy.Failed(absl::Now());
  if (!delay.has_value()) {
    failure_ = absl::AbortedError(
        absl::StrCat(running->unit.name, " cannot be kept running; its last words are above"));
    return;
  }
  spdlog::info("{}: starting again in {}", running->unit.name, absl::FormatDuration(*delay));
  running->start_at = absl::Now() + *delay;
}

void Supervisor::StartDue() {
  for (Running& running : units_) {
    if (failure_.ok() && !stopping_ && running.start_at <= absl::Now()) failure_ = Start(&running);
  }
}

void Supervisor::PollReady() {
  bool all = true;
  for (Running& running : units_) {
    if (!running.ready && running.alive() && !running.failing && running.unit.ready()) {
      running.ready = true;
      running.policy.Ready();
      if (reported_ready_) spdlog::info("{}: ready again", running.unit.name);
    }
    all = all && running.ready;
  }
  if (!all || reported_ready_) return;
  reported_ready_ = true;
  options_.on_ready();
}

void Supervisor::Signal(const Running& running, int signal) {
  for (const pid_t pid : running.pids) {
    if (pid != 0) kill(pid, signal);
  }
}

bool Supervisor::AnyAlive() const {
  return std::any_of(units_.begin(), units_.end(),
                     [](const Running& running) { return running.alive(); });
}

void Supervisor::StopAll() {
  Signal(units_.front(), SIGTERM);
  AwaitGone(&units_.front(), absl::Now() + options_.drain_timeout + kMargin);
  for (size_t i = 1; i < units_.size(); ++i) Signal(units_[i], SIGTERM);
  AwaitGone(nullptr, absl::Now() + options_.drain_timeout + kMargin);
}

void Supervisor::AwaitGone(const Running* running, absl::Time deadline) {
  bool killed = false;
  while (running == nullptr ? AnyAlive() : running->alive()) {
    const int signal = WaitForSignal(kPoll);
    ReapChildren();
    if (killed || (signal != SIGTERM && signal != SIGINT && absl::Now() < deadline)) continue;
    KillAll();
    killed = true;
  }
}

void Supervisor::KillAll() {
  for (const Running& running : units_) Signal(running, SIGKILL);
}

}  // namespace marcoro
