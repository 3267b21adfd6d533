// One request being generated: n sequences at the router, their tokens turned into text, and what
// is not yet sent.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/admission/admission.h"
#include "coordinator/api/choice_assembler.h"
#include "coordinator/api/metrics.h"
#include "coordinator/api/served_model.h"
#include "coordinator/api/valid_request.h"
#include "coordinator/routing/router.h"
#include "marcoro/v1/inference.pb.h"

namespace marcoro {

// Learns that a generation has moved on.
class GenerationObserver {
 public:
  virtual ~GenerationObserver() = default;
  // There is something to take, or the generation is over. From any thread; must not block; may
  // come late or twice.
  virtual void OnProgress() = 0;
};

// Thread-safe. While its sequences run, the router keeps it alive: whoever loses interest must
// cancel it.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  using Clock = std::chrono::steady_clock;

  // Whether the request is over, and how.
  enum class State { kRunning, kDone, kFailed, kCancelled };

  // `model` and `metrics` outlive the generation. `arrival` is when the request came.
  Generation(std::string id, ValidGenerate request, const ServedModel& model, ApiMetrics& metrics,
             Clock::time_point arrival, std::weak_ptr<GenerationObserver> observer);

  // Starts the sequences. Once. `ticket` is held until they have ended.
  void Start(Router& router, AdmissionTicket ticket);

  // Moves what has come since the last call to `*news`: pieces of choices in ascending order of
  // index, and, once done, usage, timings and seed. Sets `*anything` to whether there was
  // something.
  State Take(v1::GenerateStreamResponse* news, bool* anything);

  // Where the generation stands, without taking anything.
  State state() const;
  // Why it failed, with details. Only in state kFailed.
  absl::Status failure() const;
  // Generated tokens that wait to be taken.
  uint64_t pending_tokens() const;

  // Nobody waits for the answer any more: frees the sequences.
  void Cancel();
  // The server must stop: unfinished choices end as CANCELLED with what they have.
  void EndEarly();

 private:
  class Sink;

  struct Sequence {
    explicit Sequence(ChoiceAssembler choice) : assembler(std::move(choice)) {}

    std::unique_ptr<RoutedSequence> routed;
    ChoiceAssembler assembler;
    // What is new of this choice.
    v1::Choice news;
    bool has_news = false;
    // OnDone came, or the sequence is to be cancelled: `routed` is not to be kept.
    bool released = false;
    std::optional<Clock::time_point> last_token;
  };

  void OnUpdate(uint32_t index, const worker::v1::SequenceUpdate& update);
  void OnDone(uint32_t index, const absl::Status& status);
  void AbsorbTokens(Sequence* sequence, const worker::v1::SequenceUpdate& update,
                    Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AbsorbPromptLogprobs(const worker::v1::SequenceUpdate& update)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool PromptLogprobsComplete() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Counts a choice that has ended; the last one ends the request.
  void ChoiceEnded(const Sequence& sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FillSummary(Clock::time_point now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is to be destroyed without the lock: destroying a routed sequence calls into the router.
  struct Remains {
    std::vector<std::unique_ptr<RoutedSequence>> sequences;
    AdmissionTicket ticket;
  };
  Remains Leave(State state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Notify();

  const std::string id_;
  const ServedModel& model_;
  ApiMetrics& metrics_;
  const Clock::time_point arrival_;
  const std::weak_ptr<GenerationObserver> observer_;
  const ValidGenerate request_;

  mutable absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kRunning;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  AdmissionTicket ticket_ ABSL_GUARDED_BY(mutex_);
  std::vector<Sequence> sequences_ ABSL_GUARDED_BY(mutex_);
  uint32_t running_ ABSL_GUARDED_BY(mutex_);
  uint64_t pending_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  // Prompt log-probabilities not yet taken, and how many have come in all.
  std::vector<v1::TokenLogprob> prompt_logprobs_ ABSL_GUARDED_BY(mutex_);
  uint32_t prompt_logprobs_seen_ ABSL_GUARDED_BY(mutex_) = 0;
  v1::Usage usage_ ABSL_GUARDED_BY(mutex_);
  v1::Timings timings_ ABSL_GUARDED_BY(mutex_);
  Clock::time_point submitted_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Duration> queued_ ABSL_GUARDED_BY(mutex_);
  std::optional<Clock::time_point> first_token_ ABSL_GUARDED_BY(mutex_);
  std::optional<Clock::time_point> last_token_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
