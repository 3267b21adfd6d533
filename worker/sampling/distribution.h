// From logits to a drawn token: temperature, top_k, top_p, min_p, typical_p, in this order.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "worker/sampling/candidates.h"
#include "worker/sampling/sampling_params.h"

namespace marcoro {

// Each filter works on what the ones before it left:
//   top_k      the k tokens of the largest logits
//   top_p      the smallest set of the likeliest whose probability reaches p
//   min_p      tokens at least p times as likely as the likeliest
//   typical_p  the smallest set of those whose surprise is nearest to the entropy, whose
//   probability reaches p
// Among equals lower ids go first. At least one token is left. Keeps its memory from one use to the
// next.
class TokenDistribution {
 public:
  // logits hold no NaN, `max` is the largest of them and finite. params.temperature > 0.
  void Build(absl::Span<const float> logits, float max, const SamplingParams& params);

  // The token at `bits` / 2^53 of the cumulative distribution by rising id, 0 <= bits < 2^53.
  TokenId Draw(uint64_t bits) const;

  // The tokens that are left, with their probabilities, by rising id.
  std::vector<std::pair<TokenId, double>> Probabilities() const;

 private:
  TokenId IdOf(size_t index) const;
  void KeepTopK(absl::Span<const float> logits, int32_t top_k);
  void KeepTopP(float top_p);
  void KeepMinP(float min_p);
  void KeepTypical(float typical_p);
  void KeepNearest(float p);
  void SumUp();

  // Entry i is token i, or token ids_[i] (rising) if top_k has left only some. A weight of 0: cut
  // off.
  std::vector<TokenId> ids_;
  std::vector<float> logits_;  // of ids_
  std::vector<float> exponents_;
  std::vector<uint32_t> weights_;
  std::vector<uint64_t> block_sums_;
  uint64_t total_ = 0;
  // Of one filter at a time:
  std::vector<float> distances_;
  std::vector<uint64_t> histogram_;
  std::vector<Candidate> candidates_;
};

}  // namespace marcoro
