#include "coordinator/admission/admission.h"

#include <grpc/support/log.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

// After so many seconds a release counts 1/e.
constexpr double kRateMemorySeconds = 10.0;
// Suggested before anything has ever been given back.
constexpr absl::Duration kFirstRetry = absl::Seconds(1);

double Decay(absl::Duration age) {
  return std::exp(-std::max(0.0, absl::ToDoubleSeconds(age)) / kRateMemorySeconds);
}

// How long it takes to give back `amount`.
absl::Duration TimeToFree(double amount, double per_second) {
  const double limit = absl::ToDoubleSeconds(Admission::kMaxRetry);
  const double seconds = amount >= limit * per_second ? limit : amount / per_second;
  return std::max(Admission::kMinRetry, absl::Seconds(seconds));
}

AdmissionDecision Refuse(absl::Status status, Rejection rejection,
                         absl::Duration retry_after = absl::ZeroDuration()) {
  AdmissionDecision decision;
  decision.status = std::move(status);
  decision.rejection = rejection;
  decision.retry_after = retry_after;
  return decision;
}

// Nothing is above no bound.
bool Above(int64_t amount, int64_t bound) { return bound > 0 && amount > bound; }

}  // namespace

absl::string_view RejectionName(Rejection rejection) {
  switch (rejection) {
    case Rejection::kNone:
      return "";
    case Rejection::kQueueFull:
      return "queue_full";
    case Rejection::kQuota:
      return "quota";
    case Rejection::kDraining:
      return "draining";
    case Rejection::kTooLarge:
      return "too_large";
  }
  return "";
}

AdmissionTicket& AdmissionTicket::operator=(AdmissionTicket&& other) noexcept {
  if (this == &other) return *this;
  Release();
  admission_ = std::exchange(other.admission_, nullptr);
  key_ = std::move(other.key_);
  units_ = other.units_;
  return *this;
}

void AdmissionTicket::Release() {
  if (Admission* admission = std::exchange(admission_, nullptr)) admission->Release(key_, units_);
}

void Admission::DecayingRate::Add(double amount, absl::Time now) {
  sum_ = sum_ * Decay(now - last_) + amount;
  last_ = now;
}

double Admission::DecayingRate::PerSecond(absl::Time now) const {
  return sum_ * Decay(now - last_) / kRateMemorySeconds;
}

Admission::Admission(const AdmissionOptions& options, NowFunction now)
    : options_(options), now_(std::move(now)) {}

AdmissionDecision Admission::Admit(absl::string_view key, int64_t units) {
  GPR_ASSERT(units >= 1);
  const absl::Time now = now_();
  absl::MutexLock lock(&mutex_);
  if (draining_) {
    return Refuse(absl::UnavailableError("the server is draining"), Rejection::kDraining);
  }
  const int64_t largest =
      std::min(options_.max_units > 0 ? options_.max_units : units,
               options_.max_units_per_key > 0 ? options_.max_units_per_key : units);
  if (units > largest) {
    return Refuse(absl::InvalidArgumentError(absl::StrCat("the request costs ", units,
                                                          " units, but no more than ", largest,
                                                          " may be in flight")),
                  Rejection::kTooLarge);
  }
  const bool known_rate = !released_units_.empty();
  if (requests_ >= options_.max_requests) {
    return Refuse(absl::ResourceExhaustedError("too many requests are in flight"),
                  Rejection::kQueueFull,
                  known_rate ? TimeToFree(1, released_requests_.PerSecond(now)) : kFirstRetry);
  }
  const double units_per_second = released_units_.PerSecond(now);
  if (Above(units_ + units, options_.max_units)) {
    const double excess = static_cast<double>(units_ + units - options_.max_units);
    return Refuse(absl::ResourceExhaustedError("too many units are in flight"),
                  Rejection::kQueueFull,
                  known_rate ? TimeToFree(excess, units_per_second) : kFirstRetry);
  }
  const int64_t of_key = KeyUnits(key);
  if (Above(of_key + units, options_.max_units_per_key)) {
    const double excess = static_cast<double>(of_key + units - options_.max_units_per_key);
    // The key's own share of what is given back.
    const double share = static_cast<double>(of_key) / static_cast<double>(units_);
    return Refuse(absl::ResourceExhaustedError("the key's concurrency units are in use"),
                  Rejection::kQuota,
                  known_rate ? TimeToFree(excess, units_per_second * share) : kFirstRetry);
  }
  ++requests_;
  units_ += units;
  units_by_key_[key] += units;
  AdmissionDecision decision;
  decision.ticket = AdmissionTicket(this, std::string(key), units);
  return decision;
}

void Admission::Release(const std::string& key, int64_t units) {
  const absl::Time now = now_();
  absl::MutexLock lock(&mutex_);
  --requests_;
  units_ -= units;
  const auto entry = units_by_key_.find(key);
  entry->second -= units;
  if (entry->second == 0) units_by_key_.erase(entry);
  released_requests_.Add(1, now);
  released_units_.Add(static_cast<double>(units), now);
}

void Admission::SetDraining(bool draining) {
  absl::MutexLock lock(&mutex_);
  draining_ = draining;
}

bool Admission::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

bool Admission::WaitUntilIdle(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return requests_ == 0; };
  return mutex_.AwaitWithTimeout(absl::Condition(&idle), timeout);
}

int64_t Admission::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

int64_t Admission::units() const {
  absl::MutexLock lock(&mutex_);
  return units_;
}

int64_t Admission::units(absl::string_view key) const {
  absl::MutexLock lock(&mutex_);
  return KeyUnits(key);
}

int64_t Admission::KeyUnits(absl::string_view key) const {
  const auto entry = units_by_key_.find(key);
  return entry == units_by_key_.end() ? 0 : entry->second;
}

}  // namespace marcoro
