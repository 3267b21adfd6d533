// `marcoro serve` for one model, on a free port, for as long as it is needed.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace marcoro {

class LocalServer {
 public:
  // Starts it with these flags, and returns when it is ready. ABORTED if it ends before,
  // DEADLINE_EXCEEDED if it is not ready in time; what it had to say is on standard error.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const std::string& model,
                                                            const std::vector<std::string>& flags,
                                                            absl::Duration timeout);
  // Stops it. It would not outlive this process either way.
  ~LocalServer();
  LocalServer(const LocalServer&) = delete;
  LocalServer& operator=(const LocalServer&) = delete;

  const std::string& address() const { return address_; }

 private:
  LocalServer(pid_t pid, int output, std::string address)
      : pid_(pid), output_(output), address_(std::move(address)) {}
  absl::Status AwaitReady(const std::string& model, absl::Time deadline);
  // Whether it ends by itself before the deadline; `status` is waitpid's.
  bool AwaitExit(absl::Time deadline, int* status);

  pid_t pid_;   // 0: it has ended
  int output_;  // the reading end of its standard output
  const std::string address_;
};

}  // namespace marcoro
