// Sampling parameters as a backend's sampler takes them.
#pragma once

#include "kernels/token_sampler.h"
#include "worker/sampling/sampling_params.h"

namespace marcoro {

// The lists stay those of the parameters, which must outlive the rules.
inline TokenRules RulesOf(const SamplingParams& params) {
  return {.seed = params.seed,
          .temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .typical_p = params.typical_p,
          .repetition_penalty = params.repetition_penalty,
          .presence_penalty = params.presence_penalty,
          .frequency_penalty = params.frequency_penalty,
          .logit_bias = params.logit_bias,
          .allowed_tokens = params.allowed_token_ids,
          .bad_words = params.bad_words,
          .end_tokens = params.end_token_ids,
          .min_tokens = params.min_tokens,
          .logprobs = params.logprobs};
}

}  // namespace marcoro
