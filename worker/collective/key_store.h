// Where the ranks of a group leave what the others need in order to connect to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace marcoro {

// Keys are written once. Thread-safe.
class KeyStore {
 public:
  virtual ~KeyStore() = default;

  // ALREADY_EXISTS if the key holds another value; setting the same value again is allowed, so that
  // a write may be repeated.
  virtual absl::Status Set(const std::string& key, const std::string& value) = 0;

  // Waits until the key is set; DEADLINE_EXCEEDED if it is not within the timeout.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) = 0;
};

// In this process's memory, with a bound on everything.
class LocalKeyStore : public KeyStore {
 public:
  static constexpr size_t kMaxKeys = 1024;
  static constexpr size_t kMaxKeyBytes = 256;
  static constexpr size_t kMaxValueBytes = 64 << 10;
  static constexpr size_t kMaxWatchers = 256;

  // INVALID_ARGUMENT for an empty or too long key or a too long value, RESOURCE_EXHAUSTED for too
  // many keys.
  absl::Status Set(const std::string& key, const std::string& value) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Calls `callback` once with the key's value: before returning (0) if it is set, else from within
  // the Set that comes, unless Unwatch(the returned number) is earlier. RESOURCE_EXHAUSTED if too
  // many wait.
  using Callback = std::function<void(const std::string& value)>;
  absl::StatusOr<uint64_t> Watch(const std::string& key, Callback callback)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // True if the callback was not and will not be called.
  bool Unwatch(uint64_t watcher) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Watcher {
    std::string key;
    Callback callback;
  };

  absl::Mutex mutex_;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Watcher> watchers_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_watcher_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace marcoro
