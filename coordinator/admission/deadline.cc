#include "coordinator/admission/deadline.h"

#include <algorithm>

#include "absl/status/status.h"

namespace marcoro {

absl::StatusOr<absl::Duration> QueueTimeLeft(absl::Time now, absl::Time client_deadline,
                                             absl::Duration queue_timeout) {
  const absl::Duration client = client_deadline - now;
  if (client <= absl::ZeroDuration()) {
    return absl::DeadlineExceededError("the deadline had passed when the request came");
  }
  return queue_timeout > absl::ZeroDuration() ? std::min(client, queue_timeout) : client;
}

uint64_t QueueTimeoutMicroseconds(absl::Duration time_left) {
  if (time_left == absl::InfiniteDuration()) return 0;
  return static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Microseconds(time_left)));
}

}  // namespace marcoro
