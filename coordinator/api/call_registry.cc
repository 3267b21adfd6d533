#include "coordinator/api/call_registry.h"

#include <utility>

namespace marcoro {

bool CallRegistry::Add(const std::shared_ptr<CallInFlight>& call) {
  absl::MutexLock lock(&mutex_);
  if (draining_) return false;
  calls_.emplace(call.get(), call);
  return true;
}

void CallRegistry::Remove(const CallInFlight* call) {
  absl::MutexLock lock(&mutex_);
  calls_.erase(call);
}

void CallRegistry::StartDraining() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

bool CallRegistry::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

size_t CallRegistry::size() const {
  absl::MutexLock lock(&mutex_);
  return calls_.size();
}

bool CallRegistry::WaitUntilEmpty(absl::Duration timeout) const {
  const auto empty = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return calls_.empty(); };
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&empty), timeout);
}

// A copy, so that the calls are free to remove themselves.
std::vector<std::shared_ptr<CallInFlight>> CallRegistry::Calls() const {
  std::vector<std::shared_ptr<CallInFlight>> calls;
  absl::MutexLock lock(&mutex_);
  calls.reserve(calls_.size());
  for (const auto& [key, weak] : calls_) {
    if (std::shared_ptr<CallInFlight> call = weak.lock()) calls.push_back(std::move(call));
  }
  return calls;
}

void CallRegistry::CheckWrites() {
  for (const std::shared_ptr<CallInFlight>& call : Calls()) call->CheckWrite();
}

void CallRegistry::EndAllEarly() {
  for (const std::shared_ptr<CallInFlight>& call : Calls()) call->EndEarly();
}

}  // namespace marcoro
