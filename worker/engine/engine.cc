#include "worker/engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace marcoro {
namespace {

static_assert(kBlockTokens == kKvBlockTokens, "the scheduler's blocks are the kernels'");

EndError ErrorOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return EndError::kQueueFull;
    case absl::StatusCode::kOutOfRange:
      return EndError::kTooLong;
    default:
      return EndError::kInvalid;
  }
}

OutputLogprob ToOutput(TokenLogprob logprob) { return {logprob.logprob, std::move(logprob.top)}; }

StepSamplerLimits LimitsOf(const EngineOptions& options) {
  const SchedulerOptions& scheduler = options.scheduler;
  return {
      .sequences = std::min(scheduler.max_sequences_per_step, scheduler.max_logit_rows_per_step),
      .logit_rows = scheduler.max_logit_rows_per_step,
      .vocabulary = options.vocabulary};
}

bool Contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

Engine::Engine(const EngineOptions& options, Backend& backend, StepExecutor& executor,
               StepObserver observer)
    : options_(options),
      executor_(executor),
      observer_(std::move(observer)),
      scheduler_(options.scheduler),
      sampler_(MakeStepSampler(backend, LimitsOf(options))) {
  UpdateSnapshot({});
}

void Engine::Submit(EngineRequest request) {
  // Bounded by the scheduler's queue: what it could not hold is refused here, before it costs
  // memory.
  const size_t bound = static_cast<size_t>(options_.scheduler.max_waiting) +
                       options_.scheduler.max_sequences_per_step;
  EndError refusal = EndError::kNone;
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) {
      refusal = EndError::kDraining;
    } else if (submissions_.size() >= bound) {
      refusal = EndError::kQueueFull;
    } else {
      submissions_.push_back({std::move(request), absl::Now()});
      idle_ = false;
      return;
    }
  }
  SequenceOutput output;
  output.client_id = request.client_id;
  output.end = EndReason::kError;
  output.error = refusal;
  output.detail =
      refusal == EndError::kDraining ? "the worker is draining" : "too many requests wait";
  request.sink->Deliver({std::move(output)});
}

void Engine::Cancel(const OutputSink* sink, uint64_t client_id) {
  absl::MutexLock lock(&mutex_);
  cancellations_.push_back({sink, client_id, /*all=*/false});
}

void Engine::CancelAll(const OutputSink* sink) {
  absl::MutexLock lock(&mutex_);
  cancellations_.push_back({sink, 0, /*all=*/true});
}

void Engine::Drain() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  snapshot_.draining = true;
}

bool Engine::WaitIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(&idle_), deadline);
}

void Engine::Stop() {
  absl::MutexLock lock(&mutex_);
  stop_ = true;
  draining_ = true;
  snapshot_.draining = true;
}

EngineSnapshot Engine::snapshot() const {
  absl::MutexLock lock(&mutex_);
  return snapshot_;
}

absl::Status Engine::Run() {
  absl::Status status;
  while (status.ok() && ProcessInbox()) {
    const absl::Time begin = absl::Now();
    const StepPlan& plan = scheduler_.Schedule(begin);
    ReportExpired();
    if (!plan.empty()) {
      status = RunStep(plan, begin);
    } else {
      status = has_late_step_ ? CompleteLateStep() : Idle();
    }
  }
  if (status.ok()) status = CompleteLateStep();
  Stop();  // what comes from now on is refused at once
  ProcessInbox();
  const std::string detail = status.ok() ? "the worker stops" : std::string(status.message());
  while (!live_.empty()) EndWithError(live_.begin()->first, EndError::kDraining, detail);
  Flush();
  UpdateSnapshot({});
  return status;
}

bool Engine::ProcessInbox() {
  std::vector<Submission> submissions;
  std::vector<Cancellation> cancellations;
  bool stop = false;
  {
    absl::MutexLock lock(&mutex_);
    submissions.swap(submissions_);
    cancellations.swap(cancellations_);
    stop = stop_;
  }
  for (Submission& submission : submissions) Admit(std::move(submission));
  for (const Cancellation& cancellation : cancellations) Remove(cancellation);
  return !stop;
}

void Engine::Admit(Submission submission) {
  const EngineRequest& request = submission.request;
  const auto key =
      std::make_pair(static_cast<const OutputSink*>(request.sink.get()), request.client_id);
  if (by_client_.contains(key))
    return Refuse(request, EndError::kInvalid, "the sequence id is in use");
  NewSequence sequence;
  sequence.id = next_id_;
  sequence.prompt_ids = request.prompt;
  sequence.generated_ids = request.generated;
  sequence.max_tokens = request.max_tokens;
  sequence.priority = request.priority;
  if (request.queue_timeout.has_value())
    sequence.deadline = submission.arrival + *request.queue_timeout;
  sequence.cache_salt = request.cache_salt;
  sequence.wants_prompt_logits = request.prompt_logprobs >= 0;
  if (absl::Status status = scheduler_.Add(std::move(sequence)); !status.ok()) {
    return Refuse(request, ErrorOf(status), std::string(status.message()));
  }
  Live live;
  live.arrival = submission.arrival;
  live.generated = static_cast<int32_t>(request.generated.size());
  live.request = std::move(submission.request);
  by_client_.emplace(key, next_id_);
  const auto it = live_.emplace(next_id_, std::move(live)).first;
  sampler_->Open(next_id_, it->second.request);
  ++next_id_;
}

void Engine::Remove(const Cancellation& cancellation) {
  std::vector<SequenceId> ids;
  if (cancellation.all) {
    for (const auto& [id, live] : live_) {
      if (live.request.sink.get() == cancellation.sink) ids.push_back(id);
    }
  } else if (const auto it = by_client_.find({cancellation.sink, cancellation.client_id});
             it != by_client_.end()) {
    ids.push_back(it->second);
  }
  for (const SequenceId id : ids) {
    scheduler_.Finish(id);
    Forget(id);
    ++totals_.finished_cancelled;
  }
}

void Engine::ReportExpired() {
  for (const SequenceId id : scheduler_.TakeExpired()) {
    EndWithError(id, EndError::kDeadline, "the request did not begin before its deadline");
  }
}

// Nothing to compute: waits for the inbox, and lets the peers know that this rank lives.
absl::Status Engine::Idle() {
  Flush();
  UpdateSnapshot({});
  const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stop_ || !submissions_.empty() || !cancellations_.empty();
  };
  bool woken = false;
  {
    absl::MutexLock lock(&mutex_);
    woken = mutex_.AwaitWithTimeout(absl::Condition(&has_work), options_.heartbeat_interval);
  }
  return woken ? absl::OkStatus() : executor_.Heartbeat();
}

// Where the device holds the tokens, the step's results are taken once the next one is under way.
absl::Status Engine::RunStep(const StepPlan& plan, absl::Time begin) {
  sampler_->Supply(plan);
  const absl::StatusOr<Tensor> logits = executor_.Execute(plan);
  if (!logits.ok()) return logits.status();
  if (plan.sequences.empty()) {  // blocks were zeroed, nothing else
    scheduler_.Commit({});
    return absl::OkStatus();
  }
  CollectJobs(plan);
  if (absl::Status status = sampler_->Queue(jobs_, *logits); !status.ok()) return status;
  step_.sequences.assign(plan.sequences.begin(), plan.sequences.end());
  step_.outputs.assign(scheduler_.outputs().begin(), scheduler_.outputs().end());
  step_.begin = begin;
  const bool late = sampler_->holds_tokens();
  if (late) CommitLate(step_);
  if (absl::Status status = CompleteLateStep(); !status.ok()) return status;
  if (!late) return Complete(step_, /*late=*/false);
  std::swap(step_, late_step_);
  has_late_step_ = true;
  return absl::OkStatus();
}

void Engine::CommitLate(const StepUnderWay& step) {
  tokens_.clear();
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    if (step.outputs[i].samples) tokens_.push_back({step.sequences[i].id, kLateToken});
  }
  scheduler_.Commit(tokens_);
}

absl::Status Engine::CompleteLateStep() {
  if (!has_late_step_) return absl::OkStatus();
  has_late_step_ = false;
  return Complete(late_step_, /*late=*/true);
}

absl::Status Engine::Complete(const StepUnderWay& step, bool late) {
  if (absl::Status status = sampler_->Take(&sampled_); !status.ok()) return status;
  tokens_.clear();
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceId id = step.sequences[i].id;
    if (sampled_[i].error == EndError::kNotANumber) {
      scheduler_.Poison(id);
    } else if (sampled_[i].error != EndError::kNone) {
      scheduler_.Finish(id);
    } else if (step.outputs[i].samples) {
      tokens_.push_back({id, sampled_[i].result.token});
    }
  }
  if (late) {
    scheduler_.Resolve(tokens_);
  } else {
    scheduler_.Commit(tokens_);
  }

  StepRecord record;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    // Some ended while the step was under way: what it brought them is thrown away.
    if (!live_.contains(step.sequences[i].id)) continue;
    EmitEntry(step.sequences[i], step.outputs[i], step.begin, sampled_[i], &record);
  }
  Flush();
  record.sequences = static_cast<int32_t>(step.sequences.size());
  const absl::Time now = absl::Now();
  record.duration = now - std::max(step.begin, completed_);  // they overlap
  completed_ = now;
  UpdateSnapshot(record);
  if (observer_) observer_(record);
  return absl::OkStatus();
}

void Engine::CollectJobs(const StepPlan& plan) {
  jobs_.clear();
  int64_t row = 0;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const SequenceStep& step = plan.sequences[i];
    const StepOutput& output = scheduler_.outputs()[i];
    jobs_.push_back({.id = step.id,
                     .first_row = row,
                     .rows = step.logit_rows,
                     .prompt_rows = output.prompt_rows,
                     .prompt_token = output.prompt_token,
                     .samples = output.samples});
    row += step.logit_rows;
  }
}

// Tells the sink what the step brought to one sequence, and ends the sequence if that was its end.
void Engine::EmitEntry(const SequenceStep& step, const StepOutput& output, absl::Time begin,
                       SampledStep& sampled, StepRecord* record) {
  const auto it = live_.find(step.id);
  MARCORO_CHECK(it != live_.end());
  Live& live = it->second;
  record->prompt_tokens += step.token_count - (output.samples && step.token_count == 1 ? 1 : 0);
  if (sampled.error != EndError::kNone)
    return EndWithError(step.id, sampled.error, std::move(sampled.detail));

  SequenceOutput result;
  result.client_id = live.request.client_id;
  if (output.begins) {
    result.queue_time = begin - live.arrival;
    result.cached_tokens = output.cached_tokens;
    if (live.request.prompt_logprobs >= 0)
      result.prompt_logprobs.emplace_back();  // nothing predicts the first token
  }
  std::move(sampled.prompt_logprobs.begin(), sampled.prompt_logprobs.end(),
            std::back_inserter(result.prompt_logprobs));
  if (output.samples) {
    ++record->generated_tokens;
    AppendToken(live, sampled.result, &result);
  } else if (output.completes) {
    result.end = EndReason::kLength;
  }
  if (!output.begins && result.tokens.empty() && result.prompt_logprobs.empty() &&
      result.end == EndReason::kRunning) {
    return;  // the middle of a prompt
  }
  if (result.end != EndReason::kRunning) {
    ++(result.end == EndReason::kStopToken ? totals_.finished_stop : totals_.finished_length);
    scheduler_.Finish(step.id);
    Emit(live.request.sink, std::move(result));
    return Forget(step.id);
  }
  Emit(live.request.sink, std::move(result));
}

void Engine::AppendToken(Live& live, SampleResult& sampled, SequenceOutput* result) {
  ++live.generated;
  result->tokens.push_back(sampled.token);
  if (live.request.sampling.logprobs >= 0)
    result->logprobs.push_back(ToOutput(std::move(sampled.logprob)));
  const int32_t context = options_.scheduler.context_length;
  const int64_t length = static_cast<int64_t>(live.request.prompt.size()) + live.generated;
  if (Contains(live.request.stop_token_ids, sampled.token)) {
    result->end = EndReason::kStopToken;
  } else if (live.generated >= live.request.max_tokens || length >= context) {
    result->end = EndReason::kLength;
  }
}

// The scheduler no longer knows the sequence, or is told here.
void Engine::EndWithError(SequenceId id, EndError error, std::string detail) {
  scheduler_.Finish(id);
  const auto it = live_.find(id);
  MARCORO_CHECK(it != live_.end());
  Refuse(it->second.request, error, std::move(detail));
  Forget(id);
}

void Engine::Refuse(const EngineRequest& request, EndError error, std::string detail) {
  ++totals_.finished_error;
  SequenceOutput output;
  output.client_id = request.client_id;
  output.end = EndReason::kError;
  output.error = error;
  output.detail = std::move(detail);
  Emit(request.sink, std::move(output));
}

void Engine::Forget(SequenceId id) {
  const auto it = live_.find(id);
  sampler_->Close(id);
  by_client_.erase({it->second.request.sink.get(), it->second.request.client_id});
  live_.erase(it);
}

void Engine::Emit(const std::shared_ptr<OutputSink>& sink, SequenceOutput output) {
  for (auto& [known, outputs] : outbox_) {
    if (known == sink) return outputs.push_back(std::move(output));
  }
  outbox_.emplace_back(sink, std::vector<SequenceOutput>());
  outbox_.back().second.push_back(std::move(output));
}

void Engine::Flush() {
  for (auto& [sink, outputs] : outbox_) sink->Deliver(std::move(outputs));
  outbox_.clear();
}

void Engine::UpdateSnapshot(const StepRecord& record) {
  totals_.steps += record.sequences > 0 ? 1 : 0;
  totals_.prompt_tokens += record.prompt_tokens;
  totals_.generated_tokens += record.generated_tokens;
  totals_.scheduler = scheduler_.counters();
  absl::MutexLock lock(&mutex_);
  const bool draining = draining_;
  snapshot_ = totals_;
  snapshot_.draining = draining;
  idle_ = live_.empty() && submissions_.empty();
}

}  // namespace marcoro
