// A model of a hub into this machine's cache.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "deploy/hub/hub_settings.h"
#include "deploy/hub/retry.h"
#include "worker/weights/hub_cache.h"

namespace marcoro {

struct PullOptions {
  int jobs = 4;                                      // files at a time
  absl::Duration stall_timeout = absl::Seconds(30);  // without a byte; then another attempt
  absl::Duration lock_patience = absl::Minutes(10);  // for another process's standing download
  RetryOptions retry;
  // Free bytes of the file system of a folder. Null: as it says.
  std::function<uint64_t(const std::string& folder)> free_bytes = nullptr;
  // Called as weights arrive, one call at a time: bytes of this run, and how many it is to fetch.
  // The last call has done == total. May be null.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
};

// Asks the hub what the revision is now, downloads the files of it that the cache lacks, and
// returns the snapshot's folder. A pull that ends early, however that happens, leaves no snapshot
// that is not whole; another one goes on where it ended. Offline: what the cache has.
//
// Errors are HubClient's and DownloadBlob's; RESOURCE_EXHAUSTED, before anything large is
// downloaded, if the disk cannot hold it; INVALID_ARGUMENT for a cache whose links lead out of it.
absl::StatusOr<std::string> PullModel(const HubSettings& settings, const HubName& name,
                                      const PullOptions& options);

}  // namespace marcoro
