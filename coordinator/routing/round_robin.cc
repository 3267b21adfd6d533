// round_robin: one after the other, whatever their load.
#include "coordinator/routing/policy.h"

namespace marcoro {
namespace {

class RoundRobinPolicy final : public Policy {
 public:
  size_t Pick(absl::Span<const ReplicaLoad> candidates, uint64_t affinity) override {
    // By ordinal, not by index: the turn survives replicas that come and go.
    size_t chosen = 0;
    while (chosen < candidates.size() && candidates[chosen].ordinal < next_) ++chosen;
    if (chosen == candidates.size()) chosen = 0;
    next_ = candidates[chosen].ordinal + 1;
    return chosen;
  }

 private:
  // Smallest ordinal whose turn has not been.
  uint64_t next_ = 0;
};

}  // namespace

std::unique_ptr<Policy> MakeRoundRobinPolicy() { return std::make_unique<RoundRobinPolicy>(); }

}  // namespace marcoro
