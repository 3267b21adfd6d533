// Picking the best of many tokens without sorting them all.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "worker/scheduler/step_plan.h"

namespace marcoro {

struct Candidate {
  float key = 0;  // what it is ranked by
  TokenId id = 0;
  uint32_t weight = 0;  // its probability in units of the whole
};

// The one order of candidates: larger keys first, lower ids first among equal keys. Total, because
// ids are distinct.
struct RankedBefore {
  bool operator()(const Candidate& a, const Candidate& b) const {
    if (a.key != b.key) return a.key > b.key;
    return a.id < b.id;
  }
};

// Makes *candidates the first `count` tokens in the order above, in any order; fewer if fewer have
// a logit above -infinity. One pass over the logits, which must not be NaN. count >= 1.
void SelectTop(absl::Span<const float> logits, int32_t count, std::vector<Candidate>* candidates);

// Reorders the candidates so that [0, i) are the first i of the order and i itself comes next,
// where i is the candidate at which the weights, summed in that order, pass `target`: sum of [0, i)
// <= target < sum of [0, i]. Returns i. Linear in the number of candidates. target is less than the
// sum of all weights.
size_t SelectByWeight(absl::Span<Candidate> candidates, uint64_t target);

uint64_t TotalWeight(absl::Span<const Candidate> candidates);

}  // namespace marcoro
