#include "worker/collective/shared_flags.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <ctime>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

using Clock = std::chrono::steady_clock;

// How long a sleeper may overlook that the rank it waits for has died.
constexpr std::chrono::milliseconds kLivenessInterval{50};

inline void PauseCpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The futexes are shared between processes: no FUTEX_PRIVATE_FLAG.
uint32_t* FutexWord(std::atomic<uint32_t>& value) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  return reinterpret_cast<uint32_t*>(&value);
}

// Returns when woken, when the value differs from `expected`, after `timeout`, or for no reason.
void FutexWait(std::atomic<uint32_t>& value, uint32_t expected, std::chrono::nanoseconds timeout) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout);
  timespec relative = {};
  relative.tv_sec = seconds.count();
  relative.tv_nsec = (timeout - seconds).count();
  syscall(SYS_futex, FutexWord(value), FUTEX_WAIT, expected, &relative, nullptr, 0);
}

bool SpinUntil(const std::atomic<uint32_t>& sequence, uint32_t target,
               std::chrono::microseconds spin) {
  constexpr int kPausesPerClockReading = 16;
  const SteadyTime end = Clock::now() + spin;
  do {
    for (int i = 0; i < kPausesPerClockReading; ++i) {
      if (HasReached(sequence.load(std::memory_order_acquire), target)) return true;
      PauseCpu();
    }
  } while (Clock::now() < end);
  return false;
}

absl::Status SleepUntil(const SharedSegment& segment, int rank, uint32_t target,
                        SteadyTime deadline) {
  std::atomic<uint32_t>& sequence = segment.flags(rank).sequence;
  while (true) {
    // Sequentially consistent, as the publisher's store and its look at the sleepers are: one of
    // the two sees the other.
    const uint32_t seen = sequence.load(std::memory_order_seq_cst);
    if (HasReached(seen, target)) return absl::OkStatus();
    const auto left = std::chrono::nanoseconds(deadline - Clock::now());
    if (left.count() <= 0) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", rank, " did not answer in time"));
    }
    FutexWait(sequence, seen, std::min<std::chrono::nanoseconds>(left, kLivenessInterval));
    if (!HasReached(sequence.load(std::memory_order_acquire), target) && !segment.IsAlive(rank) &&
        // What it published before it ended counts.
        !HasReached(sequence.load(std::memory_order_acquire), target)) {
      return absl::UnavailableError(absl::StrCat("rank ", rank, " is gone"));
    }
  }
}

}  // namespace

void PublishSequence(RankFlags& flags, uint32_t sequence) {
  flags.core.store(sched_getcpu(), std::memory_order_relaxed);
  flags.sequence.store(sequence, std::memory_order_seq_cst);
  if (flags.sleepers.load(std::memory_order_seq_cst) != 0) {
    syscall(SYS_futex, FutexWord(flags.sequence), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
}

absl::Status WaitForSequence(const SharedSegment& segment, int rank, uint32_t target,
                             std::chrono::microseconds spin, SteadyTime deadline) {
  RankFlags& flags = segment.flags(rank);
  if (HasReached(flags.sequence.load(std::memory_order_acquire), target)) return absl::OkStatus();
  // Where other programs keep the other cores busy, ranks may come to share one. Spinning would
  // then keep the very rank from running that is waited for, each time anew, and the kernel would
  // not part them, since both always have been running a moment ago.
  const bool share_a_core = flags.core.load(std::memory_order_relaxed) == sched_getcpu();
  if (!share_a_core && SpinUntil(flags.sequence, target, spin)) return absl::OkStatus();
  flags.sleepers.fetch_add(1, std::memory_order_seq_cst);
  absl::Status status = SleepUntil(segment, rank, target, deadline);
  flags.sleepers.fetch_sub(1, std::memory_order_relaxed);
  return status;
}

}  // namespace marcoro
