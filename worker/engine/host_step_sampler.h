// Sampling by the processor, from logits that it can read or that are copied to where it can.
#pragma once

#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kernels/check.h"
#include "worker/engine/step_sampler.h"

namespace marcoro {

class HostStepSampler final : public StepSampler {
 public:
  // The backend outlives the sampler.
  explicit HostStepSampler(Backend& backend) : backend_(backend) {}

  void Open(SequenceId id, const EngineRequest& request) override {
    Open(id, request, request.generated);
  }
  // A sequence that has generated more, or less, than its request says.
  void Open(SequenceId id, const EngineRequest& request, absl::Span<const TokenId> generated);
  void Close(SequenceId id) override { sequences_.erase(id); }
  void Supply(const StepPlan& plan) override { MARCORO_CHECK(plan.late.empty()); }
  bool holds_tokens() const override { return false; }
  absl::Status Queue(absl::Span<const SampleJob> jobs, const Tensor& logits) override;
  absl::Status Take(std::vector<SampledStep>* results) override;

 private:
  struct Sequence {
    const EngineRequest* request = nullptr;
    std::unique_ptr<SequenceSampler> sampler;
  };

  // Jobs [begin, end) have rows that lie side by side.
  absl::Status DoAdjacent(absl::Span<const SampleJob> jobs, size_t begin, size_t end,
                          const Tensor& logits);
  absl::StatusOr<Tensor> OnHost(const Tensor& logits);
  void Do(const SampleJob& job, const Tensor& logits, absl::Span<const LogitSummary> summaries,
          SampledStep* sampled);

  Backend& backend_;
  absl::flat_hash_map<SequenceId, Sequence> sequences_;
  std::vector<LogitSummary> summaries_;
  std::vector<float> host_logits_;
  std::vector<SampledStep> results_;
};

}  // namespace marcoro
