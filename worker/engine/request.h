// What goes into the engine and what comes out of it: one generation (or scoring) of token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "worker/sampling/logprobs.h"
#include "worker/sampling/sampling_params.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

struct SequenceOutput;

// Where a request's outputs go. Held by the requests that are in the engine.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  // All outputs of one engine step for this sink, on the engine's thread. Must not block.
  virtual void Deliver(std::vector<SequenceOutput> outputs) = 0;
};

struct EngineRequest {
  std::shared_ptr<OutputSink> sink;
  uint64_t client_id = 0;       // the sink's own name for the request, unique within the sink
  std::vector<TokenId> prompt;  // at least one token
  std::vector<TokenId>
      generated;            // tokens generated elsewhere before; the request goes on after them
  SamplingParams sampling;  // min_tokens and end_token_ids included
  int32_t max_tokens =
      0;  // generated tokens, those in `generated` included; 0: prompt log-probabilities only
  std::vector<TokenId> stop_token_ids;
  int32_t priority = 0;
  std::optional<absl::Duration> queue_timeout;  // dropped if prefill has not begun by then
  uint64_t cache_salt = 0;
  int32_t prompt_logprobs = -1;  // alternatives to report with each prompt token; -1: none
};

enum class EndReason { kRunning, kStopToken, kLength, kError };

enum class EndError { kNone, kQueueFull, kDeadline, kDraining, kInvalid, kNotANumber, kTooLong };

struct OutputLogprob {
  std::optional<float> logprob;       // absent for the first token of a prompt
  std::vector<TokenAlternative> top;  // best first
};

struct SequenceOutput {
  uint64_t client_id = 0;
  std::vector<TokenId> tokens;
  std::vector<OutputLogprob> logprobs;         // one for each of tokens, if asked for
  std::vector<OutputLogprob> prompt_logprobs;  // of the next prompt tokens, in order
  EndReason end = EndReason::kRunning;
  EndError error = EndError::kNone;
  std::string detail;  // of an error
  // In the first output of a request:
  std::optional<absl::Duration> queue_time;
  std::optional<int32_t> cached_tokens;
};

}  // namespace marcoro
