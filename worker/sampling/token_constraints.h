// Tokens that must not be chosen.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "worker/sampling/sampling_params.h"

namespace marcoro {

// Gives the logit -infinity to tokens outside allowed_token_ids, to end tokens before min_tokens
// are generated, and to tokens that would complete one of bad_words after what the prompt and the
// generated tokens end with. Ids beyond the vocabulary are ignored.
class TokenConstraints {
 public:
  TokenConstraints(const SamplingParams& params, absl::Span<const TokenId> prompt);

  // Whether Apply may change anything for the next token.
  bool active() const {
    return generated_ < min_tokens_ || !allowed_.empty() || !bad_words_.empty();
  }
  // One more generated token. O(length of the longest bad word).
  void Append(TokenId token);
  void Apply(absl::Span<float> logits) const;

 private:
  void Remember(TokenId token);
  bool EndsWith(absl::Span<const TokenId> tokens) const;

  int32_t min_tokens_ = 0;
  std::vector<TokenId> end_tokens_;
  std::vector<TokenId> allowed_;  // rising; empty: all
  std::vector<std::vector<TokenId>> bad_words_;
  size_t remembered_ = 0;      // longest bad word, its last token aside
  std::vector<TokenId> tail_;  // the last tokens, at most remembered_
  int32_t generated_ = 0;
};

}  // namespace marcoro
