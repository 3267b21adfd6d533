// Sends sequences to worker replicas and keeps them going: picks a replica by policy, and when one
// is lost in mid-stream, replays prompt + tokens on another of the same numerics fingerprint, so
// that the caller sees a pause and nothing else.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

// Receives what happens to one sequence. Calls come one at a time, from any thread, and must not
// block.
class SequenceSink {
 public:
  virtual ~SequenceSink() = default;
  // New tokens or prompt log-probabilities. The last update has `end` set (STOP_TOKEN or LENGTH).
  // Replayed tokens are never reported twice.
  virtual void OnUpdate(worker::v1::SequenceUpdate update) = 0;
  // Exactly once, after the last update: OK after an end, otherwise why the sequence failed
  // (RESOURCE_EXHAUSTED: the replicas' queues are full; DEADLINE_EXCEEDED: not begun in time;
  // UNAVAILABLE: no replica, or none came back within the replay timeout; INTERNAL: the model gave
  // NaN; INVALID_ARGUMENT / OUT_OF_RANGE: refused by the worker). Not called after Cancel.
  virtual void OnDone(absl::Status status) = 0;
};

// A sequence in flight. Destroying it cancels it on the worker; a callback that is already running
// may still finish.
class RoutedSequence {
 public:
  virtual ~RoutedSequence() = default;
};

// What GetModel, health and metrics need to know of the replicas.
struct ReplicaSummary {
  int configured = 0;
  int ready = 0;
  bool loading = false;   // some replica says it is loading
  bool draining = false;  // every connected replica is draining
  uint64_t running = 0;   // sums over connected replicas
  uint64_t waiting = 0;
  worker::v1::WorkerStatus newest;  // of a ready replica, otherwise of any connected one
};

class Router {
 public:
  virtual ~Router() = default;

  // Starts the sequence; submit.sequence_id is the router's to set. The outcome goes to the sink,
  // also when no replica is ready: the sequence then waits for one up to the router's start
  // timeout. affinity groups requests that share a prefix (0: none).
  virtual std::unique_ptr<RoutedSequence> Start(worker::v1::Submit submit, uint64_t affinity,
                                                std::shared_ptr<SequenceSink> sink) = 0;

  virtual ReplicaSummary Summary() const = 0;
};

}  // namespace marcoro
