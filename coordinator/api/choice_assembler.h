// One choice of an answer, from the tokens its sequence generates: text, stop texts,
// log-probabilities, finish reason.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "coordinator/api/served_model.h"
#include "coordinator/api/valid_request.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_matcher.h"
#include "marcoro/v1/inference.pb.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

// The token that ends a sequence (an end-of-sequence or one of stop_token_ids) is among token_ids
// and counted, but writes no text unless include_stop is set. Stop texts are looked for in the
// generated text alone, and only where they complete after min_tokens tokens; the token that
// completes one is the last of token_ids, even where its text goes on past the stop.
class ChoiceAssembler {
 public:
  // Both outlive the assembler.
  ChoiceAssembler(const ValidGenerate& request, const ServedModel& model);

  // Adds what the update brings to `*news` (text, token_ids, logprobs, finish_reason). Nothing once
  // finished. Returns how many tokens were taken: all of the update's, unless a stop text ended the
  // choice before.
  uint32_t Absorb(const worker::v1::SequenceUpdate& update, v1::Choice* news);

  // Ends the choice as CANCELLED, with the text that was held back.
  void Cancel(v1::Choice* news);

  v1::FinishReason finish_reason() const { return finish_reason_; }
  bool finished() const { return finish_reason_ != v1::FINISH_REASON_UNSPECIFIED; }
  uint32_t generated_tokens() const { return generated_tokens_; }

 private:
  void AddText(uint32_t id, v1::Choice* news);
  void Flush(std::string* text);

  const ValidGenerate& request_;
  const ServedModel& model_;
  std::optional<Detokenizer> detokenizer_;  // none without a tokenizer
  StopMatcher stop_matcher_;
  bool echo_pending_;
  uint32_t generated_tokens_ = 0;
  v1::FinishReason finish_reason_ = v1::FINISH_REASON_UNSPECIFIED;
  std::string piece_;  // scratch
};

// Log-probabilities with the texts of their tokens. `id` is the token they belong to.
v1::TokenLogprob MakeTokenLogprob(uint32_t id, const worker::v1::TokenLogprobs& from,
                                  const ServedModel& model);

}  // namespace marcoro
