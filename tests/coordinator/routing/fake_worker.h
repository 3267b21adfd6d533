// A worker made for tests: a real gRPC server on the loopback that speaks worker.proto, "generates"
// tokens by arithmetic, and fails as the test tells it to.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

struct FakeWorkerOptions {
  // What the status says.
  worker::v1::WorkerState state = worker::v1::WORKER_STATE_READY;
  std::string fingerprint = "numerics-a";
  uint32_t tensor_parallel = 1;
  uint32_t context_length = 4096;
  uint32_t vocabulary_size = 1024;
  std::string quantization = "fp8";
  // Sequences beyond max_running wait; beyond max_running + max_waiting they are refused with
  // QUEUE_FULL.
  uint32_t max_running = 256;
  uint32_t max_waiting = 1024;

  // Steps by itself while a sequence runs; otherwise only by Step().
  bool automatic = true;
  // Pause between the steps that it makes by itself.
  absl::Duration step_interval = absl::ZeroDuration();
  // How often the status is sent.
  absl::Duration status_interval = absl::Milliseconds(50);
  // Prompt log-probabilities given in one step, before the first token.
  int prompt_logprobs_per_step = 2;
  // Says in a message of its own that max_tokens is reached.
  bool end_separately = false;
};

// Thread-safe. Each token is a hash of the seed, the prompt and all tokens before it: a
// continuation that was given the wrong history goes wrong in every token.
class FakeWorker {
 public:
  explicit FakeWorker(FakeWorkerOptions options = {});
  ~FakeWorker();
  FakeWorker(const FakeWorker&) = delete;
  FakeWorker& operator=(const FakeWorker&) = delete;

  // "127.0.0.1:port"; stays the same over Kill and Restart.
  std::string address() const;

  // What an undisturbed worker generates for the submit, its generated_ids included.
  static std::vector<uint32_t> Tokens(const worker::v1::Submit& submit,
                                      uint32_t vocabulary_size = 1024);
  // The log-probability that goes with a token, and with prompt token `position` > 0.
  static float Logprob(uint32_t token);
  static float PromptLogprob(const worker::v1::Submit& submit, int position);
  // Reported in the first update of each sequence.
  static constexpr uint64_t kQueueMicroseconds = 17;
  static constexpr uint32_t kCachedTokens = 3;

  // One message with the next token (or prompt log-probabilities) of every running sequence.
  void Step(int steps = 1);

  // Status changes, told at once.
  void SetState(worker::v1::WorkerState state);
  void SetFingerprint(std::string fingerprint);
  // Every later submit ends with this error; nullopt: they run again.
  void RefuseWith(std::optional<worker::v1::SequenceError> error);
  // Every sequence there is ends with this error.
  void FailAll(worker::v1::SequenceError error);
  // Sends nothing any more, but keeps the connections; false: speaks again.
  void SetSilent(bool silent);
  // Dies when it has sent this many tokens more: breaks its streams, forgets its sequences, and
  // refuses streams until Restart.
  void DieAfterTokens(int tokens);
  // Dies now, listening socket and all.
  void Kill();
  // Comes back on the same port with nothing in its memory.
  void Restart();

  // What it has seen since it was made.
  std::vector<worker::v1::Submit> submits() const;
  std::vector<uint64_t> cancels() const;
  // Streams opened since it was made, and those that are open.
  int connections() const;
  int streams() const;
  // Sequences it holds now.
  int sequences() const;
  // Waits until the condition holds; false if it does not within a generous limit.
  bool WaitForSubmits(int count) const;
  bool WaitForCancels(int count) const;
  bool WaitForConnections(int count) const;
  bool WaitForSequences(int count) const;
  bool WaitForStreams(int count) const;

 private:
  class Service;
  std::unique_ptr<Service> service_;
};

}  // namespace marcoro
