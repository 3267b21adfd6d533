// What has been heard of one sequence: enough to continue it on another replica as if nothing had
// happened.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

// Not thread-safe.
class SequenceLog {
 public:
  explicit SequenceLog(worker::v1::Submit submit);

  // Takes in the next update of the current attempt and removes from it what the caller has been
  // told before. INTERNAL if the worker sent what it was not asked for.
  absl::Status Record(worker::v1::SequenceUpdate* update);

  // The submit that starts the sequence, or goes on after everything recorded; the updates that
  // follow belong to it. sequence_id and queue_timeout_microseconds are the caller's to set.
  worker::v1::Submit NextAttempt();

  // The worker has begun: some update was recorded.
  bool begun() const { return begun_; }
  // Tokens or prompt log-probabilities were recorded: only equal numerics may continue.
  bool has_output() const { return output_count_ > 0; }
  // Tokens and prompt log-probabilities recorded.
  uint64_t output_count() const { return output_count_; }
  // All that was asked for has been recorded; only the word that it is the end is missing.
  bool complete() const;

  // As submitted; 0: none.
  uint64_t queue_timeout_microseconds() const { return submit_.queue_timeout_microseconds(); }

 private:
  bool WantsPromptLogprobs() const;

  // generated_ids grows as tokens arrive.
  worker::v1::Submit submit_;
  bool begun_ = false;
  uint64_t output_count_ = 0;
  // Prompt log-probabilities that the caller has, and those of them that the current attempt has
  // yet to repeat.
  int prompt_logprobs_reported_ = 0;
  int prompt_logprobs_to_drop_ = 0;
};

}  // namespace marcoro
