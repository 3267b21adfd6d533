// A program that a test starts, with everything that it starts in turn.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace marcoro {

// How much longer everything may take in this build: sanitizers slow programs down.
double TimeScale();

// Asks until the condition holds; false if it does not within the time (which is scaled).
bool Eventually(const std::function<bool()>& condition, absl::Duration timeout = absl::Seconds(20));

// Path of a program of this build, or of the folder that MARCORO_BIN_DIR names in the environment.
std::string Program(const std::string& name);

// Path of a program that is looked for in PATH and Go's folder; empty if it is nowhere.
std::string FindTool(const std::string& name);

class Process {
 public:
  // Starts arguments[0]. Dies with this process, however that ends.
  explicit Process(std::vector<std::string> arguments);
  // Kills what is still there.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;

  // What was written so far.
  std::string out() const;
  std::string err() const;
  // Waits for text in the standard output; false if the program ends or the (scaled) time passes.
  bool AwaitOutput(absl::string_view text, absl::Duration timeout);

  // The exit code (128 + signal if killed); nothing if the program runs for longer than the
  // (scaled) time.
  std::optional<int> AwaitExit(absl::Duration timeout);
  // Whether every process that has inherited the output is gone, within the (scaled) time.
  bool AwaitTreeGone(absl::Duration timeout);

 private:
  void Collect(int out, int err);

  pid_t pid_ = -1;
  std::thread collector_;
  mutable absl::Mutex mutex_;
  std::string out_ ABSL_GUARDED_BY(mutex_);
  std::string err_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<int> exit_code_;
};

// Runs a program to its end.
struct Finished {
  std::optional<int> exit_code;  // nothing: it had to be killed
  bool tree_gone = false;
  std::string out;
  std::string err;
};
Finished RunToEnd(std::vector<std::string> arguments, absl::Duration timeout = absl::Seconds(30));

struct Child {
  pid_t pid;
  std::vector<std::string> arguments;
};
// The processes whose parent is `pid`.
std::vector<Child> ChildrenOf(pid_t pid);

}  // namespace marcoro
