// The folder of a commit in the cache, made of links to blobs.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "deploy/hub/hub_client.h"
#include "worker/weights/hub_cache.h"

namespace marcoro {

// Makes snapshots/COMMIT with a link to the blob of each file; every blob is there. The folder
// appears whole, at once. Where another program has begun one already, links are put into it one by
// one, config.json last: without it a snapshot is not whole. Returns the folder.
absl::StatusOr<std::string> WriteSnapshot(const HubRepositoryPaths& paths,
                                          const std::string& commit, std::vector<HubFile> files);

// Writes the commit that a branch or tag stands for; nothing for a revision that is a commit.
absl::Status WriteRef(const HubRepositoryPaths& paths, const std::string& revision,
                      const std::string& commit);

}  // namespace marcoro
