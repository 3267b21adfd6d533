// Sampling by the backend's own sampler: tokens come to the host, logits stay where they are. What
// that sampler cannot do, prompt log-probabilities among it, the processor does from those rows
// alone.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/token_sampler.h"
#include "worker/engine/host_step_sampler.h"
#include "worker/engine/step_sampler.h"

namespace marcoro {

class DeviceStepSampler final : public StepSampler {
 public:
  // The backend outlives the sampler, whose slots are at least as many as a step has sequences.
  DeviceStepSampler(Backend& backend, std::unique_ptr<TokenSampler> sampler, int32_t slots)
      : sampler_(std::move(sampler)), slots_(slots), host_(backend) {}

  void Open(SequenceId id, const EngineRequest& request) override;
  void Close(SequenceId id) override;
  void Supply(const StepPlan& plan) override;
  bool holds_tokens() const override { return !steps_[last_].on_host; }
  absl::Status Queue(absl::Span<const SampleJob> jobs, const Tensor& logits) override;
  absl::Status Take(std::vector<SampledStep>* results) override;

 private:
  static constexpr int32_t kNone = -1;

  struct Sequence {
    const EngineRequest* request = nullptr;
    std::vector<TokenId> generated;
    int32_t slot = kNone;
    bool on_host = false;  // for good: the sampler does not take it
  };
  // Of a job that is queued.
  struct Sampling {
    SequenceId id = 0;
    int64_t row = kNone;  // that the sampler chooses from
    int32_t logprobs = -1;
  };
  // That is queued.
  struct Step {
    std::vector<Sampling> jobs;
    bool has_choices = false;  // from the sampler
    bool on_host = false;      // some of it was the processor's
  };

  bool HasSlot(SequenceId id, Sequence& sequence, absl::Span<const SampleJob> jobs);
  void NoteRefused(const absl::Status& status);
  void CloseAbsent(absl::Span<const SampleJob> jobs);
  void TakeChoice(const Sampling& sampling, const TokenChoice& choice, SampledStep* sampled);

  const std::unique_ptr<TokenSampler> sampler_;
  const int32_t slots_;
  HostStepSampler host_;
  absl::flat_hash_map<SequenceId, Sequence> sequences_;
  int32_t open_slots_ = 0;
  uint64_t refused_ = 0;  // sequences, by the sampler
  std::vector<SampleJob> host_jobs_;
  std::vector<int32_t> row_slots_;
  std::vector<LateId> late_ids_;
  Step steps_[TokenSampler::kMostQueued];
  int last_ = 0;   // queued
  int first_ = 0;  // to be taken next
};

}  // namespace marcoro
