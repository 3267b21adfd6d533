// One file of a hub into the cache: resumed where an earlier attempt ended, checked, and only then
// given its name.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "deploy/hub/hub_client.h"
#include "deploy/hub/retry.h"
#include "worker/weights/hub_cache.h"

namespace marcoro {

struct BlobDownload {
  std::string commit;
  HubFile file;
  RetryOptions retry;
  // How long another process may hold the file's lock without its download growing.
  absl::Duration lock_patience = absl::Minutes(10);
  // Told how many of the file's bytes are there, whenever that changes; it may shrink.
  std::function<void(uint64_t bytes)> progress;
  // Waits that long; false if the download is to be given up.
  std::function<bool(absl::Duration)> wait;
};

// Bytes of the file that lie in the cache already: all of them, or the beginning that an earlier
// attempt left.
uint64_t BytesInCache(const HubRepositoryPaths& paths, const HubFile& file);

// Downloads the file to BLOB.incomplete, beginning behind what is there, and renames it to BLOB
// once its length and checksum are right. Two processes at once take turns: the second finds it
// done. Nothing is downloaded where the blob is there. RESOURCE_EXHAUSTED for a full disk;
// DATA_LOSS for contents that are not what the hub said, also after beginning anew.
absl::Status DownloadBlob(const HubRepositoryPaths& paths, const BlobDownload& download,
                          HubClient* client);

}  // namespace marcoro
