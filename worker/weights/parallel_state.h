// What threads at work on one job share.
#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace marcoro {

// Lends objects, so that there are never more of them than threads at work. A returned one keeps
// what it holds.
template <typename T>
class Pool {
 public:
  std::unique_ptr<T> Take() {
    absl::MutexLock lock(&mutex_);
    if (free_.empty()) return std::make_unique<T>();
    std::unique_ptr<T> object = std::move(free_.back());
    free_.pop_back();
    return object;
  }

  void Return(std::unique_ptr<T> object) {
    absl::MutexLock lock(&mutex_);
    free_.push_back(std::move(object));
  }

  // All that were lent, once the threads are done.
  std::vector<std::unique_ptr<T>> TakeAll() {
    absl::MutexLock lock(&mutex_);
    return std::exchange(free_, {});
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<T>> free_ ABSL_GUARDED_BY(mutex_);
};

// The first failure of several threads.
class FirstError {
 public:
  bool ok() const { return ok_.load(std::memory_order_relaxed); }

  void Set(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    if (status_.ok()) status_ = std::move(status);
    ok_.store(status_.ok(), std::memory_order_relaxed);
  }

  absl::Status status() {
    absl::MutexLock lock(&mutex_);
    return status_;
  }

 private:
  std::atomic<bool> ok_ = true;
  absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
