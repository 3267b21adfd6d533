#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace marcoro::cpu {
namespace {

// The gate is one word, so that a worker joins a region and the caller closes it without a race:
// bit 0 says that the region is open, the next bits count the workers inside, the rest count
// regions. A worker that comes too late finds the gate closed and touches nothing; the caller never
// waits for one that did not join.
constexpr uint32_t kOpen = 1;
constexpr uint32_t kOneInside = 2;
constexpr uint32_t kInsideMask = 0x7fe;
constexpr uint32_t kOneRegion = 0x800;
constexpr int kMaxThreads = 1024;

// Long enough for the serial parts between the ops of a step, short against a scheduler's time
// slice.
constexpr std::chrono::microseconds kSpinTime(60);
constexpr int kPausesPerClockRead = 16;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

struct ThreadPool::State {
  // Each on its own cache line: workers poll the gate while others take indices.
  alignas(64) std::atomic<uint32_t> gate{0};
  alignas(64) std::atomic<int64_t> next{0};
  // Written by the caller while the gate is closed and nobody is inside.
  alignas(64) int64_t count = 0;
  std::optional<absl::FunctionRef<void(int64_t)>> body;

  std::atomic<bool> stopping{false};
  bool spins = true;
  void* scratch = nullptr;
  size_t scratch_bytes = 0;
  std::vector<std::thread> workers;

  // Returns when the gate no longer holds `seen`: spins for a bounded time, then sleeps.
  void AwaitChange(uint32_t seen) {
    if (spins) {
      const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
      do {
        for (int i = 0; i < kPausesPerClockRead; ++i) {
          if (gate.load(std::memory_order_acquire) != seen) return;
          Pause();
        }
      } while (std::chrono::steady_clock::now() < deadline);
    }
    gate.wait(seen, std::memory_order_acquire);
  }

  void TakeIndices() {
    for (;;) {
      const int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) return;
      (*body)(index);
    }
  }

  void Work() {
    uint32_t joined_region = 0;
    uint32_t seen = gate.load(std::memory_order_acquire);
    while (!stopping.load(std::memory_order_acquire)) {
      const uint32_t region = seen & ~(kOpen | kInsideMask);
      if ((seen & kOpen) == 0 || region == joined_region) {
        AwaitChange(seen);
        seen = gate.load(std::memory_order_acquire);
        continue;
      }
      if (!gate.compare_exchange_weak(seen, seen + kOneInside, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
        continue;
      }
      joined_region = region;
      TakeIndices();
      seen = gate.fetch_sub(kOneInside, std::memory_order_seq_cst) - kOneInside;
      // The caller may be asleep until the last one leaves.
      if ((seen & (kOpen | kInsideMask)) == 0) gate.notify_all();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  MARCORO_CHECK(threads >= 1 && threads <= kMaxThreads);
  // With fewer cores than threads a spinning thread holds the core that the awaited one needs.
  state_->spins = threads <= static_cast<int>(std::thread::hardware_concurrency());
  state_->workers.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) {
    state_->workers.emplace_back([state = state_.get()] { state->Work(); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stopping.store(true, std::memory_order_release);
  state_->gate.fetch_add(kOneRegion, std::memory_order_acq_rel);
  state_->gate.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
  std::free(state_->scratch);
}

int ThreadPool::size() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::Run(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  if (state_->workers.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  State& state = *state_;
  state.count = count;
  state.body.emplace(body);
  state.next.store(0, std::memory_order_relaxed);
  // Sequentially consistent, because a worker that goes to sleep reads the gate after it has
  // announced that it sleeps.
  state.gate.fetch_add(kOneRegion | kOpen, std::memory_order_seq_cst);
  state.gate.notify_all();
  state.TakeIndices();
  uint32_t gate = state.gate.fetch_sub(kOpen, std::memory_order_acq_rel) - kOpen;
  while ((gate & kInsideMask) != 0) {
    state.AwaitChange(gate);
    gate = state.gate.load(std::memory_order_acquire);
  }
}

void* ThreadPool::Scratch(size_t bytes) {
  constexpr size_t kAlignment = 64;
  State& state = *state_;
  if (bytes > state.scratch_bytes) {
    std::free(state.scratch);
    state.scratch_bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    state.scratch = std::aligned_alloc(kAlignment, state.scratch_bytes);
    MARCORO_CHECK(state.scratch != nullptr);
  }
  return state.scratch;
}

}  // namespace marcoro::cpu
