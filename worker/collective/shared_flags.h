// Publishing and waiting for the ranks' sequence numbers: spinning briefly, then sleeping.
#pragma once

#include <chrono>
#include <cstdint>

#include "absl/status/status.h"
#include "worker/collective/shared_segment.h"

namespace marcoro {

using SteadyTime = std::chrono::steady_clock::time_point;

// Whether `sequence` has come to `target`; the numbers wrap around.
inline bool HasReached(uint32_t sequence, uint32_t target) {
  return static_cast<int32_t>(sequence - target) >= 0;
}

// Makes everything this rank wrote before visible to ranks that see `sequence`, and wakes those
// that sleep.
void PublishSequence(RankFlags& flags, uint32_t sequence);

// Waits until `rank` has published `target`. Spins for `spin` unless that rank ran last
// on this one's core, then sleeps, looking every 50 ms
// whether the rank is alive. UNAVAILABLE if it is gone, DEADLINE_EXCEEDED at the deadline.
absl::Status WaitForSequence(const SharedSegment& segment, int rank, uint32_t target,
                             std::chrono::microseconds spin, SteadyTime deadline);

}  // namespace marcoro
