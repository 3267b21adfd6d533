#include "tests/e2e/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

constexpr absl::Duration kNap = absl::Milliseconds(5);

[[noreturn]] void RunChild(char* const* arguments, pid_t parent, int out, int err) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  setpgid(0, 0);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execvp(arguments[0], arguments);
  _exit(127);
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

double TimeScale() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 8;
#else
  return 1;
#endif
}

bool Eventually(const std::function<bool()>& condition, absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout * TimeScale();
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(kNap);
  }
  return true;
}

std::string Program(const std::string& name) {
  const char* folder = std::getenv("MARCORO_BIN_DIR");
  return absl::StrCat(folder != nullptr ? folder : MARCORO_BIN_DIR, "/", name);
}

std::string FindTool(const std::string& name) {
  const auto variable = [](const char* key) {
    const char* value = std::getenv(key);
    return std::string(value != nullptr ? value : "");
  };
  std::vector<std::string> folders = absl::StrSplit(variable("PATH"), ':', absl::SkipEmpty());
  folders.push_back(variable("HOME") + "/go/bin");
  for (const std::string& folder : folders) {
    const std::string path = absl::StrCat(folder, "/", name);
    if (access(path.c_str(), X_OK) == 0) return path;
  }
  return "";
}

Process::Process(std::vector<std::string> arguments) {
  int out[2];
  int err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    ADD_FAILURE() << "cannot make pipes";
    return;
  }
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) RunChild(pointers.data(), parent, out[1], err[1]);
  EXPECT_GT(pid_, 0) << "cannot start " << arguments[0];
  close(out[1]);
  close(err[1]);
  collector_ =
      std::thread([this, out_end = out[0], err_end = err[0]] { Collect(out_end, err_end); });
}

Process::~Process() {
  if (pid_ > 0 && !exit_code_.has_value()) {
    // Not only the leader: processes that it has forgotten would keep the pipes open for ever.
    for (const Child& child : ChildrenOf(pid_)) kill(child.pid, SIGKILL);
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (collector_.joinable()) collector_.join();
}

void Process::Signal(int signal) const {
  if (pid_ > 0 && !exit_code_.has_value()) kill(pid_, signal);
}

std::string Process::out() const {
  absl::MutexLock lock(&mutex_);
  return out_;
}

std::string Process::err() const {
  absl::MutexLock lock(&mutex_);
  return err_;
}

bool Process::AwaitOutput(absl::string_view text, absl::Duration timeout) {
  const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return closed_ || out_.find(std::string(text)) != std::string::npos;
  };
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&there), timeout * TimeScale());
  return out_.find(std::string(text)) != std::string::npos;
}

std::optional<int> Process::AwaitExit(absl::Duration timeout) {
  if (exit_code_.has_value() || pid_ <= 0) return exit_code_;
  Eventually(
      [this] {
        int status = 0;
        if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
        exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        return true;
      },
      timeout);
  return exit_code_;
}

bool Process::AwaitTreeGone(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&closed_), timeout * TimeScale());
}

// The pipes reach their end when the last process that has inherited them is gone.
void Process::Collect(int out, int err) {
  std::array<pollfd, 2> pipes = {pollfd{out, POLLIN, 0}, pollfd{err, POLLIN, 0}};
  std::array<char, 4096> buffer;
  while (pipes[0].fd >= 0 || pipes[1].fd >= 0) {
    if (poll(pipes.data(), pipes.size(), -1) < 0) continue;
    for (size_t i = 0; i < pipes.size(); ++i) {
      if (pipes[i].fd < 0 || pipes[i].revents == 0) continue;
      const ssize_t count = read(pipes[i].fd, buffer.data(), buffer.size());
      if (count <= 0) {
        close(pipes[i].fd);
        pipes[i].fd = -1;
        continue;
      }
      absl::MutexLock lock(&mutex_);
      (i == 0 ? out_ : err_).append(buffer.data(), static_cast<size_t>(count));
    }
  }
  absl::MutexLock lock(&mutex_);
  closed_ = true;
}

Finished RunToEnd(std::vector<std::string> arguments, absl::Duration timeout) {
  Process process(std::move(arguments));
  Finished finished;
  finished.exit_code = process.AwaitExit(timeout);
  finished.tree_gone = process.AwaitTreeGone(absl::Seconds(2));
  finished.out = process.out();
  finished.err = process.err();
  return finished;
}

std::vector<Child> ChildrenOf(pid_t pid) {
  std::vector<Child> children;
  const std::filesystem::path tasks = absl::StrCat("/proc/", pid, "/task");
  std::error_code gone;
  for (const auto& task : std::filesystem::directory_iterator(tasks, gone)) {
    for (const auto& text :
         absl::StrSplit(ReadFile(task.path() / "children"), ' ', absl::SkipEmpty())) {
      const pid_t child = static_cast<pid_t>(std::atoi(std::string(text).c_str()));
      if (child <= 0) continue;
      const std::string line = ReadFile(absl::StrCat("/proc/", child, "/cmdline"));
      children.push_back({child, absl::StrSplit(line, '\0', absl::SkipEmpty())});
    }
  }
  return children;
}

}  // namespace marcoro
