// How a sequence's next token is chosen. Ranges are checked at the edges (coordinator/api,
// worker/service), not here.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "worker/scheduler/step_plan.h"

namespace marcoro {

struct SamplingParams {
  uint64_t seed = 0;
  float temperature = 1;         // 0: greedy
  int32_t top_k = 0;             // 0: off
  float top_p = 1;               // 1: off
  float min_p = 0;               // 0: off
  float typical_p = 1;           // 1: off
  float repetition_penalty = 1;  // 1: off; over prompt and generated tokens
  float presence_penalty = 0;    // over generated tokens
  float frequency_penalty = 0;   // over generated tokens
  std::vector<std::pair<TokenId, float>> logit_bias = {};
  std::vector<TokenId> allowed_token_ids = {};       // empty: all
  std::vector<std::vector<TokenId>> bad_words = {};  // token sequences that are never completed
  // Token ids that must not be chosen before min_tokens are generated.
  std::vector<TokenId> end_token_ids = {};
  int32_t min_tokens = 0;
  int32_t logprobs = -1;  // alternatives to report with each token; -1: no log-probabilities
};

}  // namespace marcoro
