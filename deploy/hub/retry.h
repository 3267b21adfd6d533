// When a call that failed is tried again, and when it is given up.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace marcoro {

struct RetryOptions {
  int attempts = 6;  // in a row that brought nothing
  absl::Duration first_delay = absl::Seconds(1);
  absl::Duration longest_delay = absl::Seconds(60);  // also where a server asks for more
};

// UNAVAILABLE, which is what is tried again; retry_after: not before that.
absl::Status TransientError(const std::string& message,
                            absl::Duration retry_after = absl::ZeroDuration());

// The time in a Retry-After header, seconds or a date; zero if it is neither.
absl::Duration ParseRetryAfter(const std::string& header, absl::Time now);

class RetryPolicy {
 public:
  explicit RetryPolicy(RetryOptions options) : options_(options) {}

  // The last attempt brought something: the count begins anew.
  void Progressed() { failures_ = 0; }

  // How long to wait before the next attempt; nothing: give up. The delay doubles with every
  // failure, and is shortened at random by up to a half, so that clients that failed together do
  // not come back together.
  std::optional<absl::Duration> Failed(const absl::Status& status);

 private:
  const RetryOptions options_;
  int failures_ = 0;
};

// Calls until it succeeds, fails for good or is given up. `wait` waits that long, and is false if
// it was interrupted.
absl::Status CallWithRetries(const RetryOptions& options,
                             const std::function<bool(absl::Duration)>& wait,
                             const std::function<absl::Status()>& call);

}  // namespace marcoro
