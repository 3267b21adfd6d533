// Bounds what the coordinator has in flight, as a whole and for each key. Nothing queues here: the
// worker's scheduler queues by priority; what is too much is refused with a hint when to come back.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace marcoro {

// The key of requests that bring none.
inline constexpr absl::string_view kAnonymousKey = "anonymous";

// A request costs units: the model's concurrency cost times the number of its choices.
struct AdmissionOptions {
  // Requests in flight; beyond it RESOURCE_EXHAUSTED.
  int64_t max_requests = 1024;
  // Units in flight, over all keys and of one key; beyond it RESOURCE_EXHAUSTED. 0: no bound.
  int64_t max_units = 0;
  int64_t max_units_per_key = 0;
};

// For metrics: why a request was refused.
enum class Rejection { kNone, kQueueFull, kQuota, kDraining, kTooLarge };

// "queue_full", "quota", "draining", "too_large"; "" for kNone.
absl::string_view RejectionName(Rejection rejection);

class Admission;

// A place in flight, given back on destruction. Must not outlive its Admission.
class AdmissionTicket {
 public:
  AdmissionTicket() = default;
  AdmissionTicket(AdmissionTicket&& other) noexcept
      : admission_(std::exchange(other.admission_, nullptr)),
        key_(std::move(other.key_)),
        units_(other.units_) {}
  AdmissionTicket& operator=(AdmissionTicket&& other) noexcept;
  ~AdmissionTicket() { Release(); }

  // Gives the place back now.
  void Release();
  bool held() const { return admission_ != nullptr; }

 private:
  friend class Admission;
  AdmissionTicket(Admission* admission, std::string key, int64_t units)
      : admission_(admission), key_(std::move(key)), units_(units) {}

  Admission* admission_ = nullptr;
  std::string key_;
  int64_t units_ = 0;
};

struct AdmissionDecision {
  // OK, or RESOURCE_EXHAUSTED (kQueueFull, kQuota), UNAVAILABLE (kDraining), or INVALID_ARGUMENT
  // (kTooLarge: the request alone is above a bound, so that coming back is of no use).
  absl::Status status;
  Rejection rejection = Rejection::kNone;
  // When to come back, 0.1 … 30 s; zero where it is of no use, or admitted.
  absl::Duration retry_after = absl::ZeroDuration();
  AdmissionTicket ticket;
};

// Thread-safe; every operation takes constant time.
class Admission {
 public:
  // The shortest and the longest delay ever suggested.
  static constexpr absl::Duration kMinRetry = absl::Milliseconds(100);
  static constexpr absl::Duration kMaxRetry = absl::Seconds(30);

  using NowFunction = std::function<absl::Time()>;

  explicit Admission(const AdmissionOptions& options, NowFunction now = absl::Now);
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // units ≥ 1.
  AdmissionDecision Admit(absl::string_view key, int64_t units) ABSL_LOCKS_EXCLUDED(mutex_);

  // While draining nothing is admitted; what is in flight goes on.
  void SetDraining(bool draining) ABSL_LOCKS_EXCLUDED(mutex_);
  bool draining() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until nothing is in flight; false if that takes longer.
  bool WaitUntilIdle(absl::Duration timeout) const ABSL_LOCKS_EXCLUDED(mutex_);

  // In flight now.
  int64_t requests() const ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t units() const ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t units(absl::string_view key) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class AdmissionTicket;

  // An amount per second, in which what is older counts exponentially less.
  class DecayingRate {
   public:
    void Add(double amount, absl::Time now);
    // 0 before the first amount.
    double PerSecond(absl::Time now) const;
    bool empty() const { return last_ == absl::InfinitePast(); }

   private:
    double sum_ = 0;
    absl::Time last_ = absl::InfinitePast();
  };

  void Release(const std::string& key, int64_t units) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t KeyUnits(absl::string_view key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const AdmissionOptions options_;
  const NowFunction now_;

  mutable absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t requests_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t units_ ABSL_GUARDED_BY(mutex_) = 0;
  // Keys with something in flight only, so that their number is bounded by max_requests.
  absl::flat_hash_map<std::string, int64_t> units_by_key_ ABSL_GUARDED_BY(mutex_);
  // What was given back lately.
  DecayingRate released_requests_ ABSL_GUARDED_BY(mutex_);
  DecayingRate released_units_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
