#include "deploy/cli/local_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "deploy/cli/child_process.h"
#include "deploy/cli/free_port.h"

namespace marcoro {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(20);
// Nothing runs in it any more when it is told to stop.
constexpr absl::Duration kStopTimeout = absl::Seconds(30);
constexpr size_t kMaxOutputBytes = 1 << 20;

std::vector<std::string> Arguments(const std::string& model, const std::string& address,
                                   const std::vector<std::string>& flags) {
  std::error_code error;
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", error);
  std::vector<std::string> arguments = {program, "serve", "--model=" + model,
                                        "--metrics=", "--log-level=error"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  arguments.push_back("--listen=" + address);
  return arguments;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Start(
    const std::string& model, const std::vector<std::string>& flags, absl::Duration timeout) {
  int output[2];
  if (pipe2(output, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "cannot make a pipe");
  std::string address;
  {
    const absl::StatusOr<FreePort> port = FreePort::Find();
    if (!port.ok()) return port.status();
    address = absl::StrCat("127.0.0.1:", port->number());
  }
  const absl::StatusOr<pid_t> pid = StartProcess(Arguments(model, address, flags), output[1]);
  close(output[1]);
  std::unique_ptr<LocalServer> server(new LocalServer(pid.value_or(0), output[0], address));
  if (!pid.ok()) return pid.status();
  absl::Status status = server->AwaitReady(model, absl::Now() + timeout);
  if (!status.ok()) return status;
  return server;
}

absl::Status LocalServer::AwaitReady(const std::string& model, absl::Time deadline) {
  std::string text;
  while (!absl::StrContains(text, "ready: ")) {
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    pollfd readable = {.fd = output_, .events = POLLIN, .revents = 0};
    if (left <= 0 || text.size() > kMaxOutputBytes) {
      return absl::DeadlineExceededError(
          absl::StrCat("marcoro serve --model=", model, " did not become ready in time"));
    }
    if (poll(&readable, 1, static_cast<int>(std::min<int64_t>(left, 1000))) <= 0) continue;
    char buffer[4096];
    const ssize_t count = read(output_, buffer, sizeof(buffer));
    if (count > 0) {
      text.append(buffer, static_cast<size_t>(count));
      continue;
    }
    int status = 0;
    const bool ended = AwaitExit(absl::Now() + kStopTimeout, &status);
    return absl::AbortedError(absl::StrCat("marcoro serve --model=", model, " ",
                                           ended ? DescribeExit(status) : "closed its output",
                                           "; its last words are above"));
  }
  return absl::OkStatus();
}

bool LocalServer::AwaitExit(absl::Time deadline, int* status) {
  while (waitpid(pid_, status, WNOHANG) == 0) {
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(kPoll);
  }
  pid_ = 0;
  return true;
}

LocalServer::~LocalServer() {
  int status = 0;
  if (pid_ != 0) kill(pid_, SIGTERM);
  if (pid_ != 0 && !AwaitExit(absl::Now() + kStopTimeout, &status)) {
    kill(pid_, SIGKILL);
    waitpid(pid_, &status, 0);
  }
  close(output_);
}

}  // namespace marcoro
