// least_loaded: the replica with the fewest sequences.
#include <algorithm>

#include "coordinator/routing/policy.h"

namespace marcoro {
namespace {

class LeastLoadedPolicy final : public Policy {
 public:
  size_t Pick(absl::Span<const ReplicaLoad> candidates, uint64_t affinity) override {
    return LeastLoaded(candidates);
  }
};

}  // namespace

size_t LeastLoaded(absl::Span<const ReplicaLoad> candidates) {
  const auto least = std::min_element(
      candidates.begin(), candidates.end(),
      [](const ReplicaLoad& a, const ReplicaLoad& b) { return a.sequences < b.sequences; });
  return static_cast<size_t>(least - candidates.begin());
}

std::unique_ptr<Policy> MakeLeastLoadedPolicy() { return std::make_unique<LeastLoadedPolicy>(); }

}  // namespace marcoro
