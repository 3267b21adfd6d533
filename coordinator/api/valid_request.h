// Requests, parsed once at the edge: what these functions return is in range, encoded, and fits the
// context. Nothing behind them checks a field again.
//
// Errors: INVALID_ARGUMENT with ErrorInfo and BadRequest that name each wrong field by its path;
// NOT_FOUND for another model's name; FAILED_PRECONDITION for text where the model has no
// tokenizer, or a chat where it has no template.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/api/encode_input.h"
#include "coordinator/api/served_model.h"
#include "marcoro/v1/inference.pb.h"
#include "marcoro/worker/v1/worker.pb.h"

namespace marcoro {

struct ValidGenerate {
  // Of choice 0. Choice i draws with seed + i; only choice 0 asks for log-probabilities of the
  // prompt.
  worker::v1::Submit submit;
  uint32_t n = 1;
  // Equal for prompts that begin alike; 0 for those too short to share anything.
  uint64_t affinity = 0;
  // Comes in front of each choice's text: the prompt's text if it is to be echoed.
  std::string echo;
  std::vector<std::string> stop;
  bool include_stop = false;
  bool skip_special_tokens = true;
};

// `context_length`: most tokens of prompt and answer together. Where the request names no seed, one
// is drawn.
absl::StatusOr<ValidGenerate> ParseGenerate(const v1::GenerateRequest& request,
                                            const ServedModel& model, uint32_t context_length);

// A request that generates nothing and asks for the log-probability of every prompt token.
absl::StatusOr<ValidGenerate> ParseScore(const v1::ScoreRequest& request, const ServedModel& model,
                                         uint32_t context_length);

// Not bound to the context: text of any length has tokens.
absl::StatusOr<EncodedInput> ParseTokenize(const v1::TokenizeRequest& request,
                                           const ServedModel& model);

// OK if the ids can be decoded.
absl::Status CheckDetokenize(const v1::DetokenizeRequest& request, const ServedModel& model);

// OK if `name` is empty or the model's.
absl::Status CheckModelName(const std::string& name, const ServedModel& model);

}  // namespace marcoro
