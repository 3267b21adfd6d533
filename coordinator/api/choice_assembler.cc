#include "coordinator/api/choice_assembler.h"

namespace marcoro {
namespace {

absl::Span<const int32_t> PromptIds(const ValidGenerate& request) {
  const auto& ids = request.submit.prompt_ids();
  return {reinterpret_cast<const int32_t*>(ids.data()), static_cast<size_t>(ids.size())};
}

}  // namespace

ChoiceAssembler::ChoiceAssembler(const ValidGenerate& request, const ServedModel& model)
    : request_(request),
      model_(model),
      stop_matcher_(request.stop, request.include_stop),
      echo_pending_(!request.echo.empty()) {
  if (model.tokenizer != nullptr) {
    detokenizer_.emplace(model.tokenizer->vocabulary(), request.skip_special_tokens,
                         PromptIds(request));
  }
}

uint32_t ChoiceAssembler::Absorb(const worker::v1::SequenceUpdate& update, v1::Choice* news) {
  if (finished()) return 0;
  const int count = update.token_ids_size();
  const bool ends_with_stop_token = update.end() == worker::v1::SEQUENCE_END_STOP_TOKEN;
  int taken = 0;
  while (taken < count && !stop_matcher_.stopped()) {
    const uint32_t id = update.token_ids(taken);
    ++generated_tokens_;
    news->add_token_ids(id);
    if (taken < update.logprobs_size()) {
      *news->add_logprobs() = MakeTokenLogprob(id, update.logprobs(taken), model_);
    }
    ++taken;
    if (ends_with_stop_token && taken == count && !request_.include_stop) continue;
    AddText(id, news);
  }
  if (!stop_matcher_.stopped() && update.end() != worker::v1::SEQUENCE_END_UNSPECIFIED) {
    Flush(news->mutable_text());
    finish_reason_ = ends_with_stop_token ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH;
  }
  if (stop_matcher_.stopped()) finish_reason_ = v1::FINISH_REASON_STOP_SEQUENCE;
  news->set_finish_reason(finish_reason_);
  return static_cast<uint32_t>(taken);
}

void ChoiceAssembler::Cancel(v1::Choice* news) {
  if (finished()) return;
  Flush(news->mutable_text());
  finish_reason_ = v1::FINISH_REASON_CANCELLED;
  news->set_finish_reason(finish_reason_);
}

void ChoiceAssembler::AddText(uint32_t id, v1::Choice* news) {
  std::string* text = news->mutable_text();
  if (echo_pending_) text->append(request_.echo);
  echo_pending_ = false;
  if (!detokenizer_) return;
  piece_.clear();
  detokenizer_->Push(static_cast<int32_t>(id), &piece_);
  stop_matcher_.Push(piece_, text, generated_tokens_ > request_.submit.min_tokens());
}

// The sequence is over: what was held back comes out, and may still complete a stop text.
void ChoiceAssembler::Flush(std::string* text) {
  if (echo_pending_) text->append(request_.echo);
  echo_pending_ = false;
  if (!detokenizer_) return;
  piece_.clear();
  detokenizer_->Finish(&piece_);
  if (!stop_matcher_.Push(piece_, text, generated_tokens_ > request_.submit.min_tokens())) {
    stop_matcher_.Finish(text);
  }
}

v1::TokenLogprob MakeTokenLogprob(uint32_t id, const worker::v1::TokenLogprobs& from,
                                  const ServedModel& model) {
  const auto text = [&model](uint32_t token) {
    return model.tokenizer == nullptr ? std::string()
                                      : model.tokenizer->TokenText(static_cast<int32_t>(token));
  };
  v1::TokenLogprob result;
  result.set_token_id(id);
  result.set_token(text(id));
  if (from.has_logprob()) result.set_logprob(from.logprob());
  result.mutable_top()->Reserve(from.top_size());
  for (const worker::v1::LogprobEntry& entry : from.top()) {
    v1::TokenAlternative* alternative = result.add_top();
    alternative->set_token_id(entry.token_id());
    alternative->set_token(text(entry.token_id()));
    alternative->set_logprob(entry.logprob());
  }
  return result;
}

}  // namespace marcoro
