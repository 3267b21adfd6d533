#include "worker/collective/key_store.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace marcoro {

namespace {

absl::Status CheckKey(const std::string& key) {
  if (!key.empty() && key.size() <= LocalKeyStore::kMaxKeyBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a key has 1 to ", LocalKeyStore::kMaxKeyBytes, " bytes, not ", key.size()));
}

}  // namespace

absl::Status LocalKeyStore::Set(const std::string& key, const std::string& value) {
  if (absl::Status status = CheckKey(key); !status.ok()) return status;
  if (value.size() > kMaxValueBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the value of key ", key, " has ", value.size(),
                                                   " bytes, more than ", kMaxValueBytes));
  }
  std::vector<Callback> callbacks;
  {
    absl::MutexLock lock(&mutex_);
    const auto existing = values_.find(key);
    if (existing != values_.end()) {
      if (existing->second == value) return absl::OkStatus();
      return absl::AlreadyExistsError(absl::StrCat("key ", key, " is set to another value"));
    }
    if (values_.size() >= kMaxKeys) {
      return absl::ResourceExhaustedError(absl::StrCat("more than ", kMaxKeys, " keys"));
    }
    values_.emplace(key, value);
    for (auto watcher = watchers_.begin(); watcher != watchers_.end();) {
      if (watcher->second.key == key) {
        callbacks.push_back(std::move(watcher->second.callback));
        watcher = watchers_.erase(watcher);
      } else {
        ++watcher;
      }
    }
  }
  for (const Callback& callback : callbacks) callback(value);
  return absl::OkStatus();
}

absl::StatusOr<std::string> LocalKeyStore::Get(const std::string& key, absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto is_set = [this, &key] {
    mutex_.AssertReaderHeld();
    return values_.contains(key);
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&is_set), timeout)) {
    return absl::DeadlineExceededError(
        absl::StrCat("key ", key, " was not set within ", absl::FormatDuration(timeout)));
  }
  return values_[key];
}

absl::StatusOr<uint64_t> LocalKeyStore::Watch(const std::string& key, Callback callback) {
  if (absl::Status status = CheckKey(key); !status.ok()) return status;
  std::string value;
  {
    absl::MutexLock lock(&mutex_);
    const auto existing = values_.find(key);
    if (existing == values_.end()) {
      if (watchers_.size() >= kMaxWatchers) {
        return absl::ResourceExhaustedError(
            absl::StrCat("more than ", kMaxWatchers, " callers wait for keys"));
      }
      const uint64_t watcher = next_watcher_++;
      watchers_.emplace(watcher, Watcher{key, std::move(callback)});
      return watcher;
    }
    value = existing->second;
  }
  callback(value);
  return 0;
}

bool LocalKeyStore::Unwatch(uint64_t watcher) {
  absl::MutexLock lock(&mutex_);
  return watchers_.erase(watcher) > 0;
}

}  // namespace marcoro
