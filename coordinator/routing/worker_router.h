// The router over worker streams: see router.h for what it promises.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/routing/registry.h"
#include "coordinator/routing/router.h"
#include "coordinator/routing/worker_stream.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

struct RouterOptions {
  // Where the workers are: "host:port" (one replica) and "dns:///host:port" (each address is a
  // replica), separated by commas.
  std::string targets;
  // least_loaded, prefix_affinity or round_robin.
  std::string policy = "least_loaded";

  // How long a sequence that has given nothing yet waits for a ready replica before UNAVAILABLE,
  // and how many may wait at once; one more is UNAVAILABLE immediately.
  absl::Duration start_timeout = absl::Seconds(30);
  size_t max_waiting = 1024;
  // How long a sequence that has begun to answer waits for another replica of its numerics
  // fingerprint.
  absl::Duration replay_timeout = absl::Seconds(60);
  // Lost attempts of one sequence in a row that gave nothing new, before UNAVAILABLE: a request
  // that kills its workers must not kill them all.
  int max_replays = 3;
  // How soon a replay that found every queue full asks again.
  absl::Duration full_retry_interval = absl::Milliseconds(100);

  // Delays between attempts to connect: doubled from the first to the last, less up to half of it
  // at random. Short, since a worker may come up at any moment: a connection that is refused costs
  // little, and a cold server's first token waits for this one.
  absl::Duration reconnect_delay_min = absl::Milliseconds(50);
  absl::Duration reconnect_delay_max = absl::Milliseconds(250);
  // A worker that says nothing for this long is lost; it should speak once a second.
  absl::Duration silence_timeout = absl::Seconds(5);
  // How often dns:/// targets are resolved anew.
  absl::Duration resolve_interval = absl::Seconds(5);
  // Unset: the system's resolver.
  ResolveFunction resolve;
  WorkerStreamOptions stream;
};

struct ReplicaStatistics {
  std::string address;
  // UNSPECIFIED: not connected.
  worker::v1::WorkerState state = worker::v1::WORKER_STATE_UNSPECIFIED;
  // Sequences of this coordinator.
  uint64_t in_flight = 0;
  // As the worker last reported; 0 while it is not connected.
  uint64_t running = 0;
  uint64_t waiting = 0;
  double kv_usage = 0;
  // Times that the worker connected and spoke.
  uint64_t connections = 0;
};

// Counters grow from the router's start.
struct RouterStatistics {
  // Sequences continued on another stream after they had begun to answer.
  uint64_t replays = 0;
  // Attempts after a sequence's first, replays among them.
  uint64_t resubmits = 0;
  // Connections lost after the worker had spoken, those given up for silence among them.
  uint64_t lost_connections = 0;
  uint64_t silent_connections = 0;
  // Sequences that wait for a replica now.
  uint64_t waiting = 0;
  std::vector<ReplicaStatistics> replicas;
};

class RouterCore;

// Thread-safe. Callbacks may start and destroy sequences. Destroying the router fails what is in
// flight with UNAVAILABLE and waits for running callbacks: not from inside a callback, nor while
// Start runs. Handles may outlive it.
class WorkerRouter final : public Router {
 public:
  // Returns at once; connections are made in the background. INVALID_ARGUMENT: bad targets or
  // unknown policy.
  static absl::StatusOr<std::unique_ptr<WorkerRouter>> Create(RouterOptions options);
  ~WorkerRouter() override;

  // The sink may be called before Start returns, but never by the thread that is inside Start.
  std::unique_ptr<RoutedSequence> Start(worker::v1::Submit submit, uint64_t affinity,
                                        std::shared_ptr<SequenceSink> sink) override;
  ReplicaSummary Summary() const override;
  RouterStatistics Statistics() const;

 private:
  WorkerRouter(std::shared_ptr<RouterCore> core, std::unique_ptr<Registry> registry);

  const std::shared_ptr<RouterCore> core_;
  const std::unique_ptr<Registry> registry_;
};

}  // namespace marcoro
