// The public gRPC server: inference, models, health by service name, reflection; and how it goes
// down.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/api/api_context.h"

namespace marcoro {

struct ApiServerOptions {
  // host:port; port 0 picks a free one.
  std::string listen = "127.0.0.1:0";
  // A larger request is refused with RESOURCE_EXHAUSTED.
  int max_message_bytes = 4 << 20;
  ApiLimits limits;
};

// The referents outlive the server; all but the router outlive the router, too, whose threads may
// still be on their way out of a callback.
struct ApiServerParts {
  const ServedModel& model;
  Router& router;
  Admission& admission;
  ApiMetrics& metrics;
};

// Health: "" is SERVING as long as the process lives; "marcoro.v1.InferenceService" and
// "marcoro.v1.ModelService" while a replica is ready and no drain has begun.
class ApiServer {
 public:
  // UNAVAILABLE, saying what to do, if the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<ApiServer>> Start(const ApiServerParts& parts,
                                                          const ApiServerOptions& options);
  // Ends at once what still runs.
  virtual ~ApiServer() = default;

  virtual int port() const = 0;
  virtual bool draining() const = 0;
  virtual uint64_t requests_in_flight() const = 0;

  // NOT_SERVING first, then no new requests; waits until the running ones have finished, for
  // `timeout` at most: those left end as CANCELLED. Afterwards nothing listens any more. Once.
  virtual void Drain(absl::Duration timeout) = 0;
};

}  // namespace marcoro
