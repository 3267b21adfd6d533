#include "coordinator/api/generation.h"

#include <grpc/support/log.h>

#include <algorithm>
#include <utility>

#include "coordinator/api/errors.h"

namespace marcoro {

// What the router holds. Keeps the generation alive until the router lets go of it.
class Generation::Sink final : public SequenceSink {
 public:
  Sink(std::shared_ptr<Generation> generation, uint32_t index)
      : generation_(std::move(generation)), index_(index) {}

  void OnUpdate(worker::v1::SequenceUpdate update) override {
    generation_->OnUpdate(index_, update);
  }
  void OnDone(absl::Status status) override { generation_->OnDone(index_, status); }

 private:
  const std::shared_ptr<Generation> generation_;
  const uint32_t index_;
};

Generation::Generation(std::string id, ValidGenerate request, const ServedModel& model,
                       ApiMetrics& metrics, Clock::time_point arrival,
                       std::weak_ptr<GenerationObserver> observer)
    : id_(std::move(id)),
      model_(model),
      metrics_(metrics),
      arrival_(arrival),
      observer_(std::move(observer)),
      request_(std::move(request)),
      running_(request_.n) {
  absl::MutexLock lock(&mutex_);
  sequences_.reserve(request_.n);
  for (uint32_t i = 0; i < request_.n; ++i) {
    sequences_.emplace_back(ChoiceAssembler(request_, model_));
  }
  usage_.set_prompt_tokens(static_cast<uint32_t>(request_.submit.prompt_ids_size()));
}

void Generation::Start(Router& router, AdmissionTicket ticket) {
  {
    absl::MutexLock lock(&mutex_);
    ticket_ = std::move(ticket);
    submitted_ = Clock::now();
  }
  for (uint32_t i = 0; i < request_.n; ++i) {
    worker::v1::Submit submit = request_.submit;
    submit.mutable_sampling()->set_seed(submit.sampling().seed() + i);
    if (i > 0) submit.clear_prompt_logprobs();
    // The lock is not held: the sink may be called by now.
    std::unique_ptr<RoutedSequence> routed = router.Start(
        std::move(submit), request_.affinity, std::make_shared<Sink>(shared_from_this(), i));
    absl::MutexLock lock(&mutex_);
    if (state_ == State::kRunning && !sequences_[i].released) {
      sequences_[i].routed = std::move(routed);
    }
    // Otherwise `routed` is destroyed after the lock: it was declared before.
  }
}

void Generation::OnUpdate(uint32_t index, const worker::v1::SequenceUpdate& update) {
  bool progress = false;
  {
    // Destroyed without the lock, and before the client hears of the end: its next request finds
    // the place free.
    Remains remains;
    absl::MutexLock lock(&mutex_);
    Sequence& sequence = sequences_[index];
    if (state_ != State::kRunning || sequence.assembler.finished()) return;
    const Clock::time_point now = Clock::now();
    if (update.has_queue_microseconds() && !queued_) {
      queued_ = absl::FromChrono(submitted_ - arrival_) +
                absl::Microseconds(static_cast<int64_t>(update.queue_microseconds()));
    }
    if (index == 0 && update.has_cached_tokens()) usage_.set_cached_tokens(update.cached_tokens());
    AbsorbPromptLogprobs(update);
    AbsorbTokens(&sequence, update, now);
    progress = sequence.has_news && PromptLogprobsComplete();
    if (sequence.assembler.finished()) {
      if (update.end() == worker::v1::SEQUENCE_END_UNSPECIFIED) {
        // Ended by a stop text, of which the worker knows nothing.
        sequence.released = true;
        remains.sequences.push_back(std::move(sequence.routed));
      }
      ChoiceEnded(sequence);
      if (running_ == 0) {
        FillSummary(now);
        // Sequences that the worker has ended stay until their OnDone, or they would be cancelled
        // once more.
        state_ = State::kDone;
        remains.ticket = std::move(ticket_);
        progress = true;
      }
    }
  }
  if (progress) Notify();
}

void Generation::AbsorbTokens(Sequence* sequence, const worker::v1::SequenceUpdate& update,
                              Clock::time_point now) {
  const uint32_t taken = sequence->assembler.Absorb(update, &sequence->news);
  if (taken > 0) {
    if (!first_token_) {
      first_token_ = now;
      metrics_.ObserveFirstToken(absl::FromChrono(now - arrival_));
    }
    if (sequence->last_token) {
      metrics_.ObserveInterToken(absl::FromChrono(now - *sequence->last_token), taken);
    }
    sequence->last_token = last_token_ = now;
    pending_tokens_ += taken;
    metrics_.CountGeneratedTokens(taken);
  }
  if (taken > 0 || sequence->assembler.finished()) sequence->has_news = true;
}

void Generation::AbsorbPromptLogprobs(const worker::v1::SequenceUpdate& update) {
  const auto& ids = request_.submit.prompt_ids();
  for (const worker::v1::TokenLogprobs& logprobs : update.prompt_logprobs()) {
    if (static_cast<int>(prompt_logprobs_seen_) == ids.size()) return;
    const uint32_t id = ids[static_cast<int>(prompt_logprobs_seen_++)];
    prompt_logprobs_.push_back(MakeTokenLogprob(id, logprobs, model_));
  }
}

bool Generation::PromptLogprobsComplete() const {
  return !request_.submit.has_prompt_logprobs() ||
         static_cast<int>(prompt_logprobs_seen_) == request_.submit.prompt_ids_size();
}

void Generation::ChoiceEnded(const Sequence& sequence) {
  --running_;
  usage_.set_generated_tokens(usage_.generated_tokens() + sequence.assembler.generated_tokens());
  metrics_.CountFinish(sequence.assembler.finish_reason());
}

void Generation::FillSummary(Clock::time_point now) {
  const Clock::time_point first = first_token_.value_or(now);
  const absl::Duration queue = queued_.value_or(absl::ZeroDuration());
  const absl::Duration to_first = absl::FromChrono(first - arrival_);
  const absl::Duration decode = absl::FromChrono(last_token_.value_or(first) - first);
  const absl::Duration total = absl::FromChrono(now - arrival_);
  timings_.set_queue_seconds(absl::ToDoubleSeconds(queue));
  timings_.set_first_token_seconds(absl::ToDoubleSeconds(to_first));
  timings_.set_decode_seconds(absl::ToDoubleSeconds(decode));
  timings_.set_total_seconds(absl::ToDoubleSeconds(total));
  metrics_.ObserveRequest(queue, std::max(to_first - queue, absl::ZeroDuration()), decode, total);
  metrics_.CountPromptTokens(usage_.prompt_tokens(), usage_.cached_tokens());
}

void Generation::OnDone(uint32_t index, const absl::Status& status) {
  {
    std::unique_ptr<RoutedSequence> ended;
    Remains remains;
    absl::MutexLock lock(&mutex_);
    Sequence& sequence = sequences_[index];
    sequence.released = true;
    ended = std::move(sequence.routed);
    if (state_ != State::kRunning || sequence.assembler.finished()) return;
    failure_ = WithRoutingDetails(
        status.ok() ? absl::InternalError("the sequence ended without a last update") : status);
    remains = Leave(State::kFailed);
  }
  Notify();
}

Generation::Remains Generation::Leave(State state) {
  GPR_ASSERT(state_ == State::kRunning);
  state_ = state;
  Remains remains;
  remains.ticket = std::move(ticket_);
  for (Sequence& sequence : sequences_) {
    sequence.released = true;
    if (sequence.routed != nullptr) remains.sequences.push_back(std::move(sequence.routed));
  }
  return remains;
}

void Generation::Cancel() {
  Remains remains;
  absl::MutexLock lock(&mutex_);
  if (state_ == State::kRunning) remains = Leave(State::kCancelled);
}

void Generation::EndEarly() {
  {
    Remains remains;
    absl::MutexLock lock(&mutex_);
    if (state_ != State::kRunning) return;
    for (Sequence& sequence : sequences_) {
      if (sequence.assembler.finished()) continue;
      sequence.assembler.Cancel(&sequence.news);
      sequence.has_news = true;
      ChoiceEnded(sequence);
    }
    FillSummary(Clock::now());
    remains = Leave(State::kDone);
  }
  Notify();
}

Generation::State Generation::Take(v1::GenerateStreamResponse* news, bool* anything) {
  absl::MutexLock lock(&mutex_);
  *anything = false;
  if (state_ == State::kFailed || state_ == State::kCancelled) return state_;
  // Log-probabilities of the prompt belong whole into the first message.
  if (state_ == State::kRunning && !PromptLogprobsComplete()) return state_;
  news->set_id(id_);
  news->set_model(model_.name);
  for (size_t i = 0; i < sequences_.size(); ++i) {
    Sequence& sequence = sequences_[i];
    if (!sequence.has_news) continue;
    sequence.has_news = false;
    sequence.news.set_index(static_cast<uint32_t>(i));
    news->add_choices()->Swap(&sequence.news);
    *anything = true;
  }
  for (v1::TokenLogprob& logprob : prompt_logprobs_) {
    *news->add_prompt_logprobs() = std::move(logprob);
    *anything = true;
  }
  prompt_logprobs_.clear();
  pending_tokens_ = 0;
  if (state_ == State::kDone) {
    *anything = true;
    *news->mutable_usage() = usage_;
    *news->mutable_timings() = timings_;
    news->set_seed(request_.submit.sampling().seed());
  }
  return state_;
}

Generation::State Generation::state() const {
  absl::MutexLock lock(&mutex_);
  return state_;
}

absl::Status Generation::failure() const {
  absl::MutexLock lock(&mutex_);
  return failure_;
}

uint64_t Generation::pending_tokens() const {
  absl::MutexLock lock(&mutex_);
  return pending_tokens_;
}

void Generation::Notify() {
  if (std::shared_ptr<GenerationObserver> observer = observer_.lock()) observer->OnProgress();
}

}  // namespace marcoro
