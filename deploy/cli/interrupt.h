// Ctrl-C as something that a long job looks at.
#pragma once

#include <atomic>

namespace marcoro {

// From now on the first SIGINT, SIGTERM or SIGHUP makes the flag true; a second one ends the
// process. A signal that is ignored stays so.
const std::atomic<bool>& WatchForInterrupt();

}  // namespace marcoro
