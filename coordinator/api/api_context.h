// What every call of the public API works with.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace marcoro {

class Admission;
class ApiMetrics;
class CallRegistry;
class Router;
struct ServedModel;

struct ApiLimits {
  // Longest wait for a prefill; a client's earlier deadline counts first.
  absl::Duration queue_timeout = absl::Seconds(60);
  // A stream whose message is stuck for longer is cancelled.
  absl::Duration write_timeout = absl::Seconds(30);
  // A stream whose client lets more tokens than this wait is ended with RESOURCE_EXHAUSTED.
  uint64_t max_pending_tokens = 4096;
};

// The referents outlive all calls.
struct ApiContext {
  const ServedModel& model;
  Router& router;
  Admission& admission;
  ApiMetrics& metrics;
  CallRegistry& calls;
  ApiLimits limits;
};

// Most tokens of prompt and answer together: what the workers allow, or before one has connected,
// what the checkpoint does.
uint32_t ContextLength(const ApiContext& api);

}  // namespace marcoro
