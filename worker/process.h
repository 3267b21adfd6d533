// The life of a worker process: open the model, join the group, load, serve, drain.
#pragma once

#include "absl/status/status.h"
#include "worker/config.h"

namespace marcoro {

// Returns when the worker has been asked to stop (OK), or with the one line that says why it could
// not start or go on. SIGTERM and SIGINT drain rank 0; its peers leave when it tells them to. While
// loading they end the process at once.
absl::Status RunWorker(const WorkerConfig& config);

}  // namespace marcoro
