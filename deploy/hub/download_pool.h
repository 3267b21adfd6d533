// Several files of a hub at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "deploy/hub/hub_client.h"
#include "deploy/hub/pull.h"

namespace marcoro {

// Sums the bytes of files that arrive on several threads.
class DownloadProgress {
 public:
  // bytes[i]: what is there of file i at the start, of sizes[i].
  DownloadProgress(std::vector<uint64_t> bytes, std::vector<uint64_t> sizes,
                   std::function<void(uint64_t done, uint64_t total)> report);

  // File i now has so many bytes. Does not tell of the end, which Finish does: contents may yet
  // turn out wrong.
  void Set(size_t file, uint64_t bytes);
  void Finish();

 private:
  const std::function<void(uint64_t done, uint64_t total)> report_;
  absl::Mutex mutex_;
  std::vector<uint64_t> bytes_ ABSL_GUARDED_BY(mutex_);
  // Counted from here: what was there before does not belong into the rate. Less where a file had
  // to begin anew.
  std::vector<uint64_t> start_ ABSL_GUARDED_BY(mutex_);
  const std::vector<uint64_t> sizes_;
  uint64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t total_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Calls to a hub on `jobs` threads. The first error ends the others too.
class DownloadPool {
 public:
  DownloadPool(HubSettings settings, HubName name, PullOptions options)
      : settings_(std::move(settings)), name_(std::move(name)), options_(std::move(options)) {}

  absl::StatusOr<HubListing> List();
  absl::StatusOr<std::vector<HubFile>> Describe(const std::string& commit,
                                                const std::vector<std::string>& files);
  // Into the cache; `progress` may be null.
  absl::Status Download(const std::string& commit, const std::vector<HubFile>& files,
                        DownloadProgress* progress);

 private:
  // call(i, client) for every i < count.
  absl::Status ForEach(size_t count,
                       const std::function<absl::Status(size_t index, HubClient* client)>& call);
  // False if the pool gives up.
  bool Wait(absl::Duration time) { return !stop_.WaitForNotificationWithTimeout(time); }

  const HubSettings settings_;
  const HubName name_;
  const PullOptions options_;
  absl::Notification stop_;
  absl::Mutex mutex_;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
