// What the engine does with a step's logits: a token, or prompt log-probabilities, for each
// sequence of the plan.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"
#include "worker/engine/request.h"
#include "worker/sampling/sampler.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

// A sequence's part of a step's logits.
struct SampleJob {
  SequenceId id = 0;
  int64_t first_row = 0;  // of the step's logits
  int32_t rows = 0;       // 0: nothing to do
  // The first so many rows predict the prompt tokens [prompt_token, prompt_token + prompt_rows).
  int32_t prompt_rows = 0;
  int32_t prompt_token = 0;
  bool samples = false;  // from the last row
};

// What a job brought.
struct SampledStep {
  EndError error = EndError::kNone;
  std::string detail;  // of the error
  SampleResult result;
  std::vector<OutputLogprob> prompt_logprobs;
};

// Used by the engine's thread. A sequence goes on with each token that is sampled for it.
class StepSampler {
 public:
  virtual ~StepSampler() = default;

  // A sequence that may come in jobs until it is closed; the request stays where it is until then.
  virtual void Open(SequenceId id, const EngineRequest& request) = 0;
  // What is queued for the sequence comes nevertheless.
  virtual void Close(SequenceId id) = 0;

  // Before the plan is executed: where its late tokens are to be taken from.
  virtual void Supply(const StepPlan& plan) = 0;
  // Does the jobs of a step, or has them done after what the backend was asked for before. Fails if
  // the backend did.
  virtual absl::Status Queue(absl::Span<const SampleJob> jobs, const Tensor& logits) = 0;
  // Whether a plan may have the tokens of the step that was queued last as late ones. If not, they
  // are to be taken before the next step is queued.
  virtual bool holds_tokens() const = 0;
  // Waits for the step that was queued first: one result for each of its jobs.
  virtual absl::Status Take(std::vector<SampledStep>* results) = 0;
};

// On the host, and with the backend's own sampler where it has one for a vocabulary of this size
// (0: it is not asked) and sequences of at most so many at a time.
struct StepSamplerLimits {
  int32_t sequences = 0;
  int32_t logit_rows = 0;
  int64_t vocabulary = 0;
};
std::unique_ptr<StepSampler> MakeStepSampler(Backend& backend, const StepSamplerLimits& limits);

}  // namespace marcoro
