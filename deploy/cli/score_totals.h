// Sum and perplexity of scored tokens.
#pragma once

#include <cmath>

#include "google/protobuf/repeated_ptr_field.h"
#include "marcoro/v1/inference.pb.h"

namespace marcoro {

struct ScoreTotals {
  double sum = 0;  // of log-probabilities
  int tokens = 0;  // that have one

  // exp of the mean negative log-probability; `tokens` > 0.
  double perplexity() const { return std::exp(-sum / tokens); }
};

inline ScoreTotals TotalsOf(const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& tokens) {
  ScoreTotals totals;
  for (const v1::TokenLogprob& token : tokens) {
    if (!token.has_logprob()) continue;
    totals.sum += token.logprob();
    ++totals.tokens;
  }
  return totals;
}

}  // namespace marcoro
