// What the calls that run sequences have in common: admission, the way through the registry, the
// stuck-write check, and an end.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/api/api_context.h"
#include "coordinator/api/call_registry.h"
#include "coordinator/api/generation.h"
#include "coordinator/api/metrics.h"
#include "coordinator/api/valid_request.h"

namespace grpc {
class CallbackServerContext;
class Status;
}  // namespace grpc

namespace marcoro {

// Owns itself from Adopt until Leave: gRPC and the router hold it without owning it.
class GenerationCall : public GenerationObserver,
                       public CallInFlight,
                       public std::enable_shared_from_this<GenerationCall> {
 public:
  void CheckWrite() override ABSL_LOCKS_EXCLUDED(mutex_);
  void EndEarly() override;

 protected:
  GenerationCall(const ApiContext& api, ApiMethod method, grpc::CallbackServerContext* context);

  // Keeps `this` alive. First of all.
  void Adopt();
  // Admits and starts the request. An error: nothing runs, and the caller ends the call with it.
  absl::Status Begin(ValidGenerate request);
  // The status to end the call with; remembers and counts it.
  grpc::Status End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A message is on its way to the client; the check for stuck ones runs until WriteEnded.
  void WriteStarted() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteEnded() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Frees the sequences, if there are any.
  void CancelGeneration();
  // gRPC is done with the call. Last of all: destroys `this` unless the router still holds it.
  void Leave() ABSL_LOCKS_EXCLUDED(mutex_);

  const ApiContext& api_;
  absl::Mutex mutex_;
  // Set by Begin, before any callback.
  std::shared_ptr<Generation> generation_;

 private:
  using Clock = Generation::Clock;

  // How long the sequences may wait for their prefill; DEADLINE_EXCEEDED if the client's time is
  // over.
  absl::Status SetQueueTimeout(worker::v1::Submit* submit) ABSL_LOCKS_EXCLUDED(mutex_);

  const ApiMethod method_;
  const Clock::time_point arrival_ = Clock::now();
  std::shared_ptr<GenerationCall> self_;
  // Null once gRPC is done with the call.
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mutex_);
  absl::StatusCode code_ ABSL_GUARDED_BY(mutex_) = absl::StatusCode::kUnknown;
  std::optional<Clock::time_point> write_started_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
