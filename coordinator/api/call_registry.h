// The calls that are generating now, so that a drain can wait for them and stuck ones are noticed.
#pragma once

#include <cstddef>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace marcoro {

class CallInFlight {
 public:
  virtual ~CallInFlight() = default;
  // Called now and then: cancels the call if its client has let a message wait for too long.
  virtual void CheckWrite() = 0;
  // The drain's time is over: ends the call now, as CANCELLED.
  virtual void EndEarly() = 0;
};

class CallRegistry {
 public:
  // False, and nothing is registered, once draining has begun.
  [[nodiscard]] bool Add(const std::shared_ptr<CallInFlight>& call);
  // Does nothing for a call that is not registered.
  void Remove(const CallInFlight* call);

  void StartDraining();
  bool draining() const;
  size_t size() const;

  // Waits until no call is left; false if some are after `timeout`.
  bool WaitUntilEmpty(absl::Duration timeout) const;

  void CheckWrites();
  void EndAllEarly();

 private:
  std::vector<std::shared_ptr<CallInFlight>> Calls() const;

  mutable absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::unordered_map<const CallInFlight*, std::weak_ptr<CallInFlight>> calls_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
