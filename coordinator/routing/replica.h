// A worker as the router sees it, and a sequence on its way: plain state under the router core's
// lock.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "coordinator/routing/policy.h"
#include "coordinator/routing/router.h"
#include "coordinator/routing/sequence_log.h"
#include "coordinator/routing/worker_stream.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

using Clock = std::chrono::steady_clock;

struct Replica;

// At each time a sequence is in one place only: on a replica, in the list of those that wait, or in
// the hands of the thread that moves it. That thread alone calls the sink, so that calls come one
// at a time.
struct Sequence {
  Sequence(worker::v1::Submit submit, uint64_t sequence_affinity,
           std::shared_ptr<SequenceSink> sequence_sink);

  const uint64_t affinity;
  // No callback starts once this is set.
  std::atomic<bool> cancelled{false};
  // Released after OnDone: the sink may own the handle, which owns the sequence.
  std::shared_ptr<SequenceSink> sink;

  // The rest belongs to the router core and is guarded by its mutex.
  SequenceLog log;
  // Where it is: its replica and its id there …
  std::shared_ptr<Replica> replica;
  uint64_t id = 0;
  // … or among those that wait.
  bool waiting = false;
  std::list<std::shared_ptr<Sequence>>::iterator waiting_position;

  // Prefill has to begin by then.
  Clock::time_point queue_deadline = Clock::time_point::max();
  // While it waits for a replica: when to give up, and when to ask again those that refused it.
  Clock::time_point give_up_at;
  Clock::time_point retry_at;
  // Ordinals of the replicas whose queues were full for it since it last waited or moved on.
  std::vector<uint64_t> refused_by;
  // It came to wait because queues were full, not because there was no replica.
  bool waits_for_room = false;
  // Of the replica that gave its output.
  std::string fingerprint;
  bool attempted = false;
  int replays_without_progress = 0;
};

struct Replica {
  Replica(std::string replica_address, uint64_t replica_ordinal);

  // Connected, and may be given new sequences.
  bool Ready() const {
    return connected && !closing && status.state() == worker::v1::WORKER_STATE_READY;
  }
  ReplicaLoad Load() const;
  void TakeStatus(worker::v1::WorkerStatus new_status);

  const std::string address;
  const uint64_t key;
  const uint64_t ordinal;

  // No longer among the addresses: gets nothing new, and goes when it is idle.
  bool retired = false;
  // Null between connections.
  std::shared_ptr<WorkerStream> stream;
  // Of the stream before; kept until the next is there, so that gRPC's threads need not be made
  // anew.
  std::shared_ptr<void> remains;
  // The worker has spoken on this stream.
  bool connected = false;
  // The stream has been told to end.
  bool closing = false;
  Clock::time_point last_message;
  // Of the present or the last connection.
  worker::v1::WorkerStatus status;
  // Sequences there that were not ours when the status came.
  uint64_t others = 0;
  absl::flat_hash_map<uint64_t, std::shared_ptr<Sequence>> sequences;

  Clock::time_point connect_at;
  Clock::duration reconnect_delay;
  uint64_t connections = 0;
  // Attempts to connect that failed since it was last connected.
  uint64_t failures = 0;
};

}  // namespace marcoro
