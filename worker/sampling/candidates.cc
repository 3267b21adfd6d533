#include "worker/sampling/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"

namespace marcoro {
namespace {

constexpr size_t kBlock = 32;

// Calls visit(index) for each logit above *threshold, which visit may raise. Blocks without any are
// skipped by one comparison of vectors.
template <typename Visit>
void VisitAbove(absl::Span<const float> logits, const float* threshold, Visit visit) {
  for (size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, logits.size());
    if (end - begin == kBlock) {
      const float bound = *threshold;
      const float* block = logits.data() + begin;
      int hits = 0;
      for (size_t i = 0; i < kBlock; ++i) hits |= block[i] > bound ? 1 : 0;
      if (hits == 0) continue;
    }
    for (size_t i = begin; i < end; ++i) {
      if (logits[i] > *threshold) visit(i);
    }
  }
}

}  // namespace

void SelectTop(absl::Span<const float> logits, int32_t count, std::vector<Candidate>* candidates) {
  MARCORO_CHECK(count >= 1);
  candidates->clear();
  const auto wanted = static_cast<size_t>(count);
  const size_t capacity = std::max<size_t>(2 * wanted, 64);
  float threshold = -std::numeric_limits<float>::infinity();
  const auto keep_best = [&] {
    std::nth_element(candidates->begin(), candidates->begin() + (wanted - 1), candidates->end(),
                     RankedBefore());
    candidates->resize(wanted);
    threshold = candidates->back().key;
  };
  // Ids rise, so that among equal logits those that come later lose.
  VisitAbove(logits, &threshold, [&](size_t i) {
    candidates->push_back({.key = logits[i], .id = static_cast<TokenId>(i)});
    if (candidates->size() == capacity) keep_best();
  });
  if (candidates->size() > wanted) keep_best();
}

size_t SelectByWeight(absl::Span<Candidate> candidates, uint64_t target) {
  size_t low = 0;
  size_t high = candidates.size();
  uint64_t before = 0;  // weight of [0, low)
  while (high - low > 1) {
    const size_t middle = low + (high - low) / 2;
    std::nth_element(candidates.begin() + low, candidates.begin() + middle,
                     candidates.begin() + high, RankedBefore());
    const uint64_t lower = TotalWeight(candidates.subspan(low, middle - low));
    if (before + lower > target) {
      high = middle;
    } else {
      before += lower;
      low = middle;
    }
  }
  MARCORO_CHECK(low < candidates.size() && before <= target &&
                target < before + candidates[low].weight);
  return low;
}

uint64_t TotalWeight(absl::Span<const Candidate> candidates) {
  uint64_t total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  return total;
}

}  // namespace marcoro
