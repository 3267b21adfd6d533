// One connection to a worker: a bidirectional stream that carries all sequences between this
// coordinator and that worker.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

struct WorkerStreamOptions {
  // HTTP/2 pings on the connection: how often, and how long an answer may take before the
  // connection is given up.
  absl::Duration keepalive_interval = absl::Seconds(5);
  absl::Duration keepalive_timeout = absl::Seconds(5);
  // Submits that wait for the network; beyond either bound Submit gives kFull.
  size_t max_queued_requests = 4096;
  size_t max_queued_bytes = size_t{64} << 20;
  // Largest message accepted from the worker; a larger one breaks the stream.
  int max_message_bytes = 64 << 20;
};

// Thread-safe. Lives until OnClosed has returned, whoever else holds it.
class WorkerStream {
 public:
  // Called one at a time, from gRPC's threads.
  class Listener {
   public:
    virtual ~Listener() = default;
    virtual void OnMessage(worker::v1::ConnectResponse message) = 0;
    // The connection failed or was closed. Exactly once after Start, and last. remains: what is
    // left of the connection. Let go of it on a thread that is not gRPC's: the last channel to go
    // joins the threads that call back.
    virtual void OnClosed(absl::Status reason, std::shared_ptr<void> remains) = 0;
  };

  enum class SubmitResult { kQueued, kFull, kClosed };

  virtual ~WorkerStream() = default;

  // Connects. Once, and before anything else.
  virtual void Start() = 0;

  // Queues one submit. kClosed: the stream is over and OnClosed follows, or has been called.
  virtual SubmitResult Submit(worker::v1::Submit submit) = 0;

  // Queues a cancel; none is dropped for lack of room, because each belongs to one earlier submit.
  virtual void Cancel(uint64_t sequence_id) = 0;

  // Ends the stream without waiting for the worker; OnClosed follows soon, even if the worker's
  // host is gone.
  virtual void Close() = 0;
};

// address: "host:port", "ipv4:…" or "ipv6:[…]:port".
std::shared_ptr<WorkerStream> MakeWorkerStream(std::string address,
                                               const WorkerStreamOptions& options,
                                               std::shared_ptr<WorkerStream::Listener> listener);

}  // namespace marcoro
