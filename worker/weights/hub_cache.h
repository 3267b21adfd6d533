// Models of a hub that lie in this machine's cache, in the layout that Hugging Face's tools share:
//
//   CACHE/models--ORG--NAME/blobs/HASH                the contents of files
//                          /snapshots/COMMIT/FILE     links to ../../blobs/HASH
//                          /refs/REVISION             the commit that a branch or tag stands for
//        /.locks/models--ORG--NAME/HASH.lock          held by who writes that blob
//
// This file only finds; `marcoro pull` (deploy/hub) downloads.
#pragma once

#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace marcoro {

// ORG/NAME[@REVISION].
struct HubName {
  std::string repository;         // "ORG/NAME"
  std::string revision = "main";  // a branch, a tag, or a commit of 40 hexadecimal digits

  std::string ToString() const;  // "ORG/NAME", with "@REVISION" if it is not main
};

// INVALID_ARGUMENT, saying what is wrong, for a text that is no such name. A name that passes makes
// no path that leaves the cache.
absl::StatusOr<HubName> ParseHubName(absl::string_view text);

// Whether the text is 40 lower-case hexadecimal digits.
bool IsHubCommit(absl::string_view text);

// $HF_HOME, else $XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface. FAILED_PRECONDITION if
// none of the variables and no $HOME is set.
absl::StatusOr<std::string> HubHome();
// $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else HubHome()/hub.
absl::StatusOr<std::string> HubCacheFolder();

// Paths of one repository in a cache.
struct HubRepositoryPaths {
  HubRepositoryPaths(std::string cache, const std::string& repository);

  std::string Blob(const std::string& hash) const { return folder + "/blobs/" + hash; }
  std::string Snapshot(const std::string& commit) const { return folder + "/snapshots/" + commit; }
  std::string Ref(const std::string& revision) const { return folder + "/refs/" + revision; }

  std::string cache;
  std::string folder;  // CACHE/models--ORG--NAME
  std::string locks;   // CACHE/.locks/models--ORG--NAME
};

// The folder of a model that is whole in the usual cache: its config.json is there, and
// model.safetensors or every file that model.safetensors.index.json names. NOT_FOUND, with the
// `marcoro pull` that helps, if it is not there or not whole; INVALID_ARGUMENT for what is no hub
// name, and for a cache whose links lead out of it.
absl::StatusOr<std::string> FindInHubCache(const std::string& name);
// The same in the cache that is given.
absl::StatusOr<std::string> FindInHubCache(const std::string& cache, const HubName& name);

// The files that a model.safetensors.index.json names. INVALID_ARGUMENT for one that names none, or
// anything but files beside it.
absl::StatusOr<std::set<std::string>> FilesOfSafetensorsIndex(const std::string& path);

// INVALID_ARGUMENT if the path, with all links followed, is not below the cache. What does not
// exist leads nowhere, and passes.
absl::Status CheckInsideHubCache(const std::string& cache, const std::string& path);

}  // namespace marcoro
