// How long a request may wait for its turn.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace marcoro {

// The time from now in which the request has to begin: until the client's deadline (InfiniteFuture:
// none), and no longer than the server's queue timeout (zero: none). InfiniteDuration if neither
// bounds it; DEADLINE_EXCEEDED if none is left.
absl::StatusOr<absl::Duration> QueueTimeLeft(absl::Time now, absl::Time client_deadline,
                                             absl::Duration queue_timeout);

// The same in the worker protocol's form: whole microseconds, at least 1, and 0 for an infinite
// time.
uint64_t QueueTimeoutMicroseconds(absl::Duration time_left);

}  // namespace marcoro
