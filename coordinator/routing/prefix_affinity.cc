// prefix_affinity: requests of equal affinity go to the same replica, whose prefix cache then knows
// their prefix, as long as that replica carries no more than its share.
#include "coordinator/routing/policy.h"

namespace marcoro {
namespace {

// A replica may exceed the average by a quarter, and by a few sequences so that small numbers do
// not decide.
constexpr double kLoadFactor = 1.25;
constexpr double kLoadSlack = 4.0;

// The finalizer of SplitMix64: every input bit reaches every output bit.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class PrefixAffinityPolicy final : public Policy {
 public:
  size_t Pick(absl::Span<const ReplicaLoad> candidates, uint64_t affinity) override {
    if (affinity == 0) return LeastLoaded(candidates);
    // Rendezvous hashing: a replica that comes or goes moves only the requests that it takes or
    // leaves.
    size_t chosen = 0;
    uint64_t best = 0;
    double total = 1.0;
    for (size_t i = 0; i < candidates.size(); ++i) {
      const uint64_t score = Mix(Mix(affinity) ^ candidates[i].key);
      if (i == 0 || score > best) {
        best = score;
        chosen = i;
      }
      total += static_cast<double>(candidates[i].sequences);
    }
    const double bound = kLoadFactor * total / static_cast<double>(candidates.size()) + kLoadSlack;
    if (static_cast<double>(candidates[chosen].sequences) + 1.0 > bound) {
      return LeastLoaded(candidates);
    }
    return chosen;
  }
};

}  // namespace

std::unique_ptr<Policy> MakePrefixAffinityPolicy() {
  return std::make_unique<PrefixAffinityPolicy>();
}

}  // namespace marcoro
