#include "coordinator/routing/sequence_log.h"

#include <algorithm>
#include <utility>

namespace marcoro {

using worker::v1::SequenceUpdate;
using worker::v1::Submit;

SequenceLog::SequenceLog(Submit submit) : submit_(std::move(submit)) {}

absl::Status SequenceLog::Record(SequenceUpdate* update) {
  if (begun_) {
    update->clear_queue_microseconds();
    update->clear_cached_tokens();
  }
  begun_ = true;

  const int repeated = std::min(prompt_logprobs_to_drop_, update->prompt_logprobs_size());
  update->mutable_prompt_logprobs()->DeleteSubrange(0, repeated);
  prompt_logprobs_to_drop_ -= repeated;
  prompt_logprobs_reported_ += update->prompt_logprobs_size();
  if (prompt_logprobs_reported_ > submit_.prompt_ids_size()) {
    return absl::InternalError(
        "the worker sent more prompt log-probabilities than the prompt has tokens");
  }

  submit_.mutable_generated_ids()->MergeFrom(update->token_ids());
  if (static_cast<uint32_t>(submit_.generated_ids_size()) > submit_.max_tokens()) {
    return absl::InternalError("the worker sent more tokens than it was asked for");
  }
  output_count_ += static_cast<uint64_t>(update->token_ids_size()) + update->prompt_logprobs_size();
  return absl::OkStatus();
}

Submit SequenceLog::NextAttempt() {
  Submit submit = submit_;
  if (WantsPromptLogprobs()) {
    prompt_logprobs_to_drop_ = prompt_logprobs_reported_;
  } else {
    submit.clear_prompt_logprobs();
    prompt_logprobs_to_drop_ = 0;
  }
  return submit;
}

bool SequenceLog::complete() const {
  return begun_ && !WantsPromptLogprobs() &&
         static_cast<uint32_t>(submit_.generated_ids_size()) >= submit_.max_tokens();
}

bool SequenceLog::WantsPromptLogprobs() const {
  // All of them come before the first token.
  return submit_.has_prompt_logprobs() && prompt_logprobs_reported_ < submit_.prompt_ids_size();
}

}  // namespace marcoro
