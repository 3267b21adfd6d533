// The gRPC edge of rank 0: WorkerService.Connect, one multiplexed stream per coordinator.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "marcoro/worker/v1/worker.grpc.pb.h"
#include "worker/engine/engine.h"

namespace marcoro {

// What a status message says that does not change while the worker lives.
struct WorkerFacts {
  std::string numerics_fingerprint;
  int32_t tensor_parallel = 1;
  int32_t context_length = 0;
  int32_t vocabulary_size = 0;
  uint64_t parameter_count = 0;
  std::string quantization;  // "fp8", "bf16" or "f32"
  int32_t max_waiting = 0;
  int32_t max_running = 0;
};

// Thread-safe. Serves from its construction on: until an engine is attached its state is LOADING,
// and submits are refused with SEQUENCE_ERROR_DRAINING, so that a coordinator tries elsewhere.
class WorkerService final : public worker::v1::WorkerService::CallbackService {
 public:
  explicit WorkerService(WorkerFacts facts,
                         absl::Duration status_interval = absl::Milliseconds(500));
  // The gRPC server must have been shut down: no stream is left.
  ~WorkerService() override;

  // From now on READY. The engine must outlive the streams and stay until Detach.
  void Attach(Engine* engine);
  // The engine is no longer used and may go. No stream may be left: one that ends cancels in the
  // engine what it had submitted.
  void Detach();
  // From now on DRAINING: says so to every coordinator, and refuses submits.
  void Drain();

  worker::v1::WorkerStatus Status() const;

  grpc::ServerBidiReactor<worker::v1::ConnectRequest, worker::v1::ConnectResponse>* Connect(
      grpc::CallbackServerContext* context) override;

  // Most updates that wait for a coordinator that does not read; beyond it its stream is cancelled.
  static constexpr int kMaxPendingUpdates = 1 << 16;

 private:
  class Outbox;
  class Connection;
  friend class Connection;

  Engine* engine() const;
  void Remove(const std::shared_ptr<Outbox>& outbox);
  void BroadcastStatus();
  void PublishStatus();

  const WorkerFacts facts_;
  const absl::Duration status_interval_;
  mutable absl::Mutex mutex_;
  Engine* engine_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<std::shared_ptr<Outbox>> outboxes_ ABSL_GUARDED_BY(mutex_);
  std::thread publisher_;
};

}  // namespace marcoro
