#include "worker/sampling/token_constraints.h"

#include <algorithm>
#include <limits>

namespace marcoro {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

void Forbid(TokenId id, absl::Span<float> logits) {
  if (id >= 0 && static_cast<size_t>(id) < logits.size()) logits[id] = kForbidden;
}

// `allowed` rises.
void ForbidOthers(absl::Span<const TokenId> allowed, absl::Span<float> logits) {
  size_t next = 0;  // first id not yet decided
  for (const TokenId id : allowed) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    std::fill(logits.begin() + next, logits.begin() + id, kForbidden);
    next = static_cast<size_t>(id) + 1;
  }
  std::fill(logits.begin() + next, logits.end(), kForbidden);
}

}  // namespace

TokenConstraints::TokenConstraints(const SamplingParams& params, absl::Span<const TokenId> prompt)
    : min_tokens_(params.end_token_ids.empty() ? 0 : params.min_tokens),
      end_tokens_(params.end_token_ids),
      allowed_(params.allowed_token_ids) {
  std::sort(allowed_.begin(), allowed_.end());
  allowed_.erase(std::unique(allowed_.begin(), allowed_.end()), allowed_.end());
  for (const std::vector<TokenId>& word : params.bad_words) {
    if (word.empty()) continue;
    bad_words_.push_back(word);
    remembered_ = std::max(remembered_, word.size() - 1);
  }
  tail_.reserve(remembered_ + 1);
  for (const TokenId token : prompt.last(std::min(prompt.size(), remembered_))) Remember(token);
}

void TokenConstraints::Append(TokenId token) {
  ++generated_;
  Remember(token);
}

void TokenConstraints::Remember(TokenId token) {
  tail_.push_back(token);
  if (tail_.size() > remembered_) tail_.erase(tail_.begin());
}

bool TokenConstraints::EndsWith(absl::Span<const TokenId> tokens) const {
  return tokens.size() <= tail_.size() &&
         std::equal(tokens.begin(), tokens.end(), tail_.end() - tokens.size());
}

void TokenConstraints::Apply(absl::Span<float> logits) const {
  if (!allowed_.empty()) ForbidOthers(allowed_, logits);
  if (generated_ < min_tokens_) {
    for (const TokenId id : end_tokens_) Forbid(id, logits);
  }
  for (const std::vector<TokenId>& word : bad_words_) {
    if (EndsWith(absl::MakeConstSpan(word).first(word.size() - 1))) Forbid(word.back(), logits);
  }
}

}  // namespace marcoro
