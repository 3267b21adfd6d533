// A whole tensor-parallel group in one process: every rank a thread with its own backend and shard,
// rank 0 with an engine.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/backend.h"
#include "worker/collective/key_store.h"
#include "worker/engine/engine.h"
#include "worker/engine/request.h"

namespace marcoro {

// All that a request brought, log-probabilities as bits so that equality is exact.
struct Completion {
  std::vector<TokenId> tokens;
  std::vector<uint32_t> logprobs;         // one chosen and then the alternatives for each token
  std::vector<uint32_t> prompt_logprobs;  // the same; 0xffffffff for the first token
  EndReason end = EndReason::kRunning;
  EndError error = EndError::kNone;
  std::string detail;
  int32_t cached_tokens = 0;

  bool operator==(const Completion& other) const {
    return tokens == other.tokens && logprobs == other.logprobs &&
           prompt_logprobs == other.prompt_logprobs && end == other.end && error == other.error;
  }
};

// Gathers the outputs of requests by their client_id.
class Collector final : public OutputSink {
 public:
  void Deliver(std::vector<SequenceOutput> outputs) override;

  // Waits for the request's end; aborts the test program after three minutes.
  Completion Await(uint64_t client_id);
  // What has come so far.
  Completion Now(uint64_t client_id);
  // Waits until the request has at least that many tokens or has ended.
  void AwaitTokens(uint64_t client_id, size_t count);

 private:
  absl::Mutex mutex_;
  std::map<uint64_t, Completion> completions_ ABSL_GUARDED_BY(mutex_);
};

struct TestGroupOptions {
  std::string checkpoint = "small";  // folder of tests/data
  std::string backend = "auto";      // or "cuda": on a GPU or in the emulator
  int world_size = 1;
  DType linear = DType::kF8E4M3;
  DType activations = DType::kBF16;
  KvFormat kv = KvFormat::kActivation;
  // Added to every step, so that a tiny model is as slow as a test needs it.
  absl::Duration step_delay = absl::ZeroDuration();
  bool device_sampling = true;  // where the backend has a sampler of its own
  SchedulerOptions scheduler = {.kv_blocks = 512, .context_length = 512};
};

class TestGroup {
 public:
  explicit TestGroup(const TestGroupOptions& options);
  ~TestGroup();  // stops the engine and the peers

  Engine& engine() { return *engine_; }
  const std::shared_ptr<Collector>& collector() const { return collector_; }
  int32_t vocabulary_size() const { return vocabulary_size_; }

  // Submits the request under a new client_id, which is returned.
  uint64_t Submit(EngineRequest request);
  // Submits, and waits for the end.
  Completion Run(EngineRequest request) { return collector_->Await(Submit(std::move(request))); }

 private:
  void RunRank(int rank);

  const TestGroupOptions options_;
  LocalKeyStore keys_;
  std::shared_ptr<Collector> collector_ = std::make_shared<Collector>();
  uint64_t next_client_id_ = 1;
  int32_t vocabulary_size_ = 0;
  absl::Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  Engine* engine_ = nullptr;  // lives on rank 0's thread
  std::vector<std::thread> ranks_;
};

}  // namespace marcoro
