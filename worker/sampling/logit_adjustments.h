// Penalties for what was said before, and biases.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "worker/sampling/sampling_params.h"

namespace marcoro {

// In this order: repetition penalty over prompt and generated tokens (divides positive logits,
// multiplies others, once for each distinct token), frequency and presence penalties over generated
// tokens, logit bias. Ids beyond the vocabulary are ignored.
class LogitAdjustments {
 public:
  LogitAdjustments(const SamplingParams& params, absl::Span<const TokenId> prompt);

  // Whether Apply may change anything, now or later.
  bool active() const { return penalties_ || !bias_.empty(); }
  // One more generated token. O(1).
  void Append(TokenId token);
  // Work in proportion to the number of distinct tokens.
  void Apply(absl::Span<float> logits) const;

 private:
  struct SeenToken {
    TokenId id = 0;
    int32_t generated = 0;  // times
  };

  SeenToken& Seen(TokenId token);

  bool penalties_ = false;
  float repetition_penalty_ = 1;
  float presence_penalty_ = 0;
  float frequency_penalty_ = 0;
  std::vector<std::pair<TokenId, float>> bias_;
  std::vector<SeenToken> seen_;
  absl::flat_hash_map<TokenId, size_t> index_;  // of seen_
};

}  // namespace marcoro
