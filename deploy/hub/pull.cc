#include "deploy/hub/pull.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "deploy/hub/blob_download.h"
#include "deploy/hub/download_pool.h"
#include "deploy/hub/file_selection.h"
#include "deploy/hub/snapshot.h"

namespace marcoro {
namespace {

namespace fs = std::filesystem;

uint64_t FreeBytes(const std::string& folder) {
  struct statvfs status;
  if (statvfs(folder.c_str(), &status) != 0) return 0;
  return static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
}

std::string Amount(uint64_t bytes) {
  const auto amount = static_cast<double>(bytes);
  return bytes < 1'000'000'000 ? absl::StrFormat("%.1f MB", amount / 1e6)
                               : absl::StrFormat("%.1f GB", amount / 1e9);
}

// Names of the repository's folders that are there must not lead elsewhere.
absl::Status PrepareFolders(const HubRepositoryPaths& paths) {
  for (const std::string& folder : {paths.cache, paths.locks, paths.folder + "/blobs"}) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) {
      return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot make the folder ", folder));
    }
  }
  for (const char* folder : {"/blobs", "/snapshots", "/refs"}) {
    absl::Status status = CheckInsideHubCache(paths.cache, paths.folder + folder);
    if (!status.ok()) return status;
  }
  return CheckInsideHubCache(paths.cache, paths.locks);
}

// One pull. Small files come first: among them is the index, which says what the weights are.
class Pull {
 public:
  Pull(const HubSettings& settings, const HubName& name, const PullOptions& options)
      : name_(name),
        options_(options),
        paths_(settings.cache, name.repository),
        pool_(settings, name, options) {}

  absl::StatusOr<std::string> Run();

 private:
  absl::Status FetchSmallFiles(const HubListing& listing);
  // Files that the index names; empty without one.
  absl::StatusOr<std::set<std::string>> IndexedFiles() const;
  absl::Status FetchWeights(const std::string& commit, const std::vector<std::string>& names);
  absl::Status CheckSpace(uint64_t missing) const;

  const HubName& name_;
  const PullOptions& options_;
  const HubRepositoryPaths paths_;
  DownloadPool pool_;
  std::vector<HubFile> files_;  // that are in the cache now
};

absl::Status Pull::FetchSmallFiles(const HubListing& listing) {
  auto files = pool_.Describe(listing.commit, SelectSmallFiles(listing.files));
  if (!files.ok()) return files.status();
  files_ = *std::move(files);
  return pool_.Download(listing.commit, files_, /*progress=*/nullptr);
}

absl::StatusOr<std::set<std::string>> Pull::IndexedFiles() const {
  for (const HubFile& file : files_) {
    if (file.name == kIndexFile) return FilesOfSafetensorsIndex(paths_.Blob(file.hash));
  }
  return std::set<std::string>();
}

absl::Status Pull::CheckSpace(uint64_t missing) const {
  const uint64_t free =
      options_.free_bytes ? options_.free_bytes(paths_.cache) : FreeBytes(paths_.cache);
  if (missing <= free) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(name_.ToString(), " needs ", Amount(missing),
                                                   " more, but ", paths_.cache, " has only ",
                                                   Amount(free), " left"));
}

absl::Status Pull::FetchWeights(const std::string& commit, const std::vector<std::string>& names) {
  const auto files = pool_.Describe(commit, names);
  if (!files.ok()) return files.status();
  std::vector<uint64_t> there;
  std::vector<uint64_t> sizes;
  uint64_t missing = 0;
  for (const HubFile& file : *files) {
    there.push_back(BytesInCache(paths_, file));
    sizes.push_back(file.size);
    missing += file.size - there.back();
  }
  if (absl::Status status = CheckSpace(missing); !status.ok()) return status;
  DownloadProgress progress(std::move(there), std::move(sizes), options_.progress);
  if (absl::Status status = pool_.Download(commit, *files, &progress); !status.ok()) return status;
  if (missing > 0) progress.Finish();
  std::copy(files->begin(), files->end(), std::back_inserter(files_));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Pull::Run() {
  if (absl::Status status = PrepareFolders(paths_); !status.ok()) return status;
  const absl::StatusOr<HubListing> listing = pool_.List();
  if (!listing.ok()) return listing.status();
  if (absl::Status status = FetchSmallFiles(*listing); !status.ok()) return status;
  const auto indexed = IndexedFiles();
  if (!indexed.ok()) return indexed.status();
  const auto weights = SelectWeights(listing->files, *indexed);
  if (!weights.ok()) {
    return absl::Status(weights.status().code(),
                        absl::StrCat(name_.ToString(), " ", weights.status().message()));
  }
  if (absl::Status status = FetchWeights(listing->commit, *weights); !status.ok()) return status;
  const auto snapshot = WriteSnapshot(paths_, listing->commit, files_);
  if (!snapshot.ok()) return snapshot.status();
  if (absl::Status status = WriteRef(paths_, name_.revision, listing->commit); !status.ok()) {
    return status;
  }
  // As those find it who look for it later.
  return FindInHubCache(paths_.cache, name_);
}

}  // namespace

absl::StatusOr<std::string> PullModel(const HubSettings& settings, const HubName& name,
                                      const PullOptions& options) {
  if (!settings.offline) return Pull(settings, name, options).Run();
  absl::StatusOr<std::string> found = FindInHubCache(settings.cache, name);
  if (!absl::IsNotFound(found.status())) return found;
  return absl::FailedPreconditionError(
      absl::StrCat("HF_HUB_OFFLINE forbids to ask the hub, and ", found.status().message()));
}

}  // namespace marcoro
