#include "deploy/cli/workload.h"

#include <algorithm>

namespace marcoro {

v1::GenerateRequest Workload::Request(uint64_t index) const {
  Random random(options_.seed, index);
  v1::GenerateRequest request;
  request.set_ignore_eos(true);
  request.set_seed(random.Next());
  if (options_.temperature) request.set_temperature(static_cast<float>(*options_.temperature));
  const auto drawn_prompt = static_cast<uint32_t>(options_.prompt_tokens.Draw(&random));
  const auto drawn_output = static_cast<uint32_t>(options_.output_tokens.Draw(&random));
  if (!options_.prompts.empty()) {
    request.set_prompt(options_.prompts[index % options_.prompts.size()]);
    request.set_max_tokens(std::min(drawn_output, options_.context_length - 1));
    return request;
  }
  const uint32_t length = std::min(drawn_prompt, options_.context_length - 1);
  request.set_max_tokens(std::min(drawn_output, options_.context_length - length));
  const uint32_t choices = options_.vocabulary_size - kFirstId;
  for (uint32_t i = 0; i < length; ++i) {
    request.mutable_token_ids()->add_ids(kFirstId + static_cast<uint32_t>(random.Next() % choices));
  }
  return request;
}

}  // namespace marcoro
