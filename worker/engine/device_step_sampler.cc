#include "worker/engine/device_step_sampler.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "kernels/check.h"
#include "spdlog/spdlog.h"
#include "worker/sampling/token_rules.h"

namespace marcoro {
namespace {

// The processor's sampler says the same.
void SetError(SamplingStatus status, SampledStep* sampled) {
  sampled->error = EndError::kNotANumber;
  switch (status) {
    case SamplingStatus::kOk:
      MARCORO_CHECK(false);
    case SamplingStatus::kLogitsAreNotNumbers:
      sampled->detail = "the model computed NaN for this sequence";
      return;
    case SamplingStatus::kLargestIsNotFinite:
      sampled->detail = "the model's logits are not numbers";
      return;
    case SamplingStatus::kNothingIsAllowed:
      sampled->error = EndError::kInvalid;
      sampled->detail = "allowed_token_ids, bad_words and min_tokens together forbid every token";
      return;
    case SamplingStatus::kAdjustmentsAreInfinite:
      sampled->detail = "penalties and bias make logits infinite";
      return;
  }
}

}  // namespace

void DeviceStepSampler::Open(SequenceId id, const EngineRequest& request) {
  sequences_[id] = {.request = &request, .generated = request.generated};
  host_.Open(id, request);
}

void DeviceStepSampler::Close(SequenceId id) {
  const auto it = sequences_.find(id);
  MARCORO_CHECK(it != sequences_.end());
  if (it->second.slot != kNone) {
    sampler_->Close(it->second.slot);
    --open_slots_;
  }
  sequences_.erase(it);
  host_.Close(id);
}

void DeviceStepSampler::Supply(const StepPlan& plan) {
  if (plan.late.empty()) return;
  late_ids_.clear();
  for (const LateEntry& late : plan.late) {
    const Sequence& sequence = sequences_.find(late.id)->second;
    MARCORO_CHECK(sequence.slot != kNone);
    late_ids_.push_back({.row = late.index, .slot = sequence.slot});
  }
  sampler_->SupplyIds(late_ids_);
}

absl::Status DeviceStepSampler::Queue(absl::Span<const SampleJob> jobs, const Tensor& logits) {
  last_ = (last_ + 1) % TokenSampler::kMostQueued;
  Step& step = steps_[last_];
  step.jobs.assign(jobs.size(), {});
  step.has_choices = false;
  step.on_host = false;
  host_jobs_.assign(jobs.begin(), jobs.end());
  row_slots_.assign(static_cast<size_t>(logits.rows), kNone);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const SampleJob& job = jobs[i];
    SampleJob& host_job = host_jobs_[i];
    Sequence& sequence = sequences_.find(job.id)->second;
    if (job.samples && HasSlot(job.id, sequence, jobs)) {
      const int64_t row = job.first_row + job.rows - 1;
      row_slots_[static_cast<size_t>(row)] = sequence.slot;
      step.jobs[i] = {.id = job.id, .row = row, .logprobs = sequence.request->sampling.logprobs};
      step.has_choices = true;
      host_job.samples = false;
      if (job.rows == 1) host_job.rows = 0;
    }
    step.on_host |= host_job.rows > 0;
  }
  if (step.has_choices) sampler_->Queue(logits, row_slots_);
  return step.on_host ? host_.Queue(host_jobs_, logits) : absl::OkStatus();
}

// Those that wait, preempted, may have kept their slots: they open them again when they go on.
void DeviceStepSampler::CloseAbsent(absl::Span<const SampleJob> jobs) {
  absl::flat_hash_set<SequenceId> present;
  for (const SampleJob& job : jobs) present.insert(job.id);
  for (auto& [id, sequence] : sequences_) {
    if (sequence.slot == kNone || present.contains(id)) continue;
    sampler_->Close(std::exchange(sequence.slot, kNone));
    --open_slots_;
  }
}

bool DeviceStepSampler::HasSlot(SequenceId id, Sequence& sequence,
                                absl::Span<const SampleJob> jobs) {
  if (sequence.slot != kNone) return true;
  if (sequence.on_host) return false;
  if (open_slots_ == slots_) CloseAbsent(jobs);
  const EngineRequest& request = *sequence.request;
  const absl::StatusOr<int32_t> slot =
      sampler_->Open(RulesOf(request.sampling), request.prompt, sequence.generated);
  if (slot.ok()) {
    sequence.slot = *slot;
    ++open_slots_;
    return true;
  }
  NoteRefused(slot.status());
  sequence.on_host = true;
  host_.Open(id, request, sequence.generated);
  return false;
}

// Of the first, the second, the fourth, …: the log stays short however many there are.
void DeviceStepSampler::NoteRefused(const absl::Status& status) {
  if (!std::has_single_bit(++refused_)) return;
  spdlog::warn("tokens are chosen by the processor, and later, for {} sequence(s) so far: {}",
               refused_, std::string(status.message()));
}

absl::Status DeviceStepSampler::Take(std::vector<SampledStep>* results) {
  first_ = (first_ + 1) % TokenSampler::kMostQueued;
  const Step& step = steps_[first_];
  results->clear();
  results->resize(step.jobs.size());
  if (step.on_host) {
    if (absl::Status status = host_.Take(results); !status.ok()) return status;
  }
  if (!step.has_choices) return absl::OkStatus();
  const auto choices = sampler_->Take();
  if (!choices.ok()) return choices.status();
  for (size_t i = 0; i < step.jobs.size(); ++i) {
    // What is wrong with other rows of the sequence ends it too.
    if (step.jobs[i].row == kNone || (*results)[i].error != EndError::kNone) continue;
    TakeChoice(step.jobs[i], (*choices)[static_cast<size_t>(step.jobs[i].row)], &(*results)[i]);
  }
  return absl::OkStatus();
}

void DeviceStepSampler::TakeChoice(const Sampling& sampling, const TokenChoice& choice,
                                   SampledStep* sampled) {
  if (choice.status != SamplingStatus::kOk) return SetError(choice.status, sampled);
  sampled->result.token = choice.token;
  if (const auto it = sequences_.find(sampling.id); it != sequences_.end()) {
    it->second.generated.push_back(choice.token);
  }
  if (sampling.logprobs < 0) return;
  TokenLogprob& logprob = sampled->result.logprob;
  logprob = {.token = choice.token, .logprob = choice.logprob};
  for (const RankedToken& token : choice.alternatives) {
    logprob.top.push_back({token.token, token.logprob});
  }
}

}  // namespace marcoro
