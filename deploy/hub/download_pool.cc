#include "deploy/hub/download_pool.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "deploy/hub/blob_download.h"
#include "deploy/hub/retry.h"

namespace marcoro {

DownloadProgress::DownloadProgress(std::vector<uint64_t> bytes, std::vector<uint64_t> sizes,
                                   std::function<void(uint64_t, uint64_t)> report)
    : report_(std::move(report)),
      bytes_(bytes),
      start_(std::move(bytes)),
      sizes_(std::move(sizes)) {
  for (size_t i = 0; i < sizes_.size(); ++i) total_ += sizes_[i] - start_[i];
}

void DownloadProgress::Set(size_t file, uint64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  if (bytes < start_[file]) {
    total_ += start_[file] - bytes;
    done_ -= bytes_[file] - start_[file];
    start_[file] = bytes_[file] = bytes;
  }
  done_ += bytes - bytes_[file];  // may shrink: the numbers wrap around and back
  bytes_[file] = bytes;
  if (report_ && done_ < total_) report_(done_, total_);
}

void DownloadProgress::Finish() {
  const absl::MutexLock lock(&mutex_);
  if (report_) report_(total_, total_);
}

absl::Status DownloadPool::ForEach(
    size_t count, const std::function<absl::Status(size_t index, HubClient* client)>& call) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    HubClient client(settings_, name_, options_.stall_timeout,
                     [this] { return stop_.HasBeenNotified(); });
    for (size_t i = next++; i < count && !stop_.HasBeenNotified(); i = next++) {
      const absl::Status status = call(i, &client);
      if (status.ok()) continue;
      const absl::MutexLock lock(&mutex_);
      if (!failure_.ok()) return;
      failure_ = status;
      stop_.Notify();
    }
  };
  std::vector<std::thread> threads;
  const size_t jobs = std::min(count, static_cast<size_t>(options_.jobs));
  for (size_t i = 0; i < jobs; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  const absl::MutexLock lock(&mutex_);
  return failure_;
}

absl::StatusOr<HubListing> DownloadPool::List() {
  HubListing listing;
  const absl::Status status = ForEach(1, [&](size_t, HubClient* client) {
    return CallWithRetries(
        options_.retry, [this](absl::Duration time) { return Wait(time); },
        [&]() -> absl::Status {
          absl::StatusOr<HubListing> answer = client->List();
          if (!answer.ok()) return answer.status();
          listing = *std::move(answer);
          return absl::OkStatus();
        });
  });
  if (!status.ok()) return status;
  return listing;
}

absl::StatusOr<std::vector<HubFile>> DownloadPool::Describe(const std::string& commit,
                                                            const std::vector<std::string>& files) {
  std::vector<HubFile> descriptions(files.size());
  const absl::Status status = ForEach(files.size(), [&](size_t i, HubClient* client) {
    return CallWithRetries(
        options_.retry, [this](absl::Duration time) { return Wait(time); },
        [&]() -> absl::Status {
          absl::StatusOr<HubFile> answer = client->Describe(commit, files[i]);
          if (!answer.ok()) return answer.status();
          descriptions[i] = *std::move(answer);
          return absl::OkStatus();
        });
  });
  if (!status.ok()) return status;
  return descriptions;
}

absl::Status DownloadPool::Download(const std::string& commit, const std::vector<HubFile>& files,
                                    DownloadProgress* progress) {
  const HubRepositoryPaths paths(settings_.cache, name_.repository);
  return ForEach(files.size(), [&](size_t i, HubClient* client) {
    BlobDownload download;
    download.commit = commit;
    download.file = files[i];
    download.retry = options_.retry;
    download.lock_patience = options_.lock_patience;
    download.wait = [this](absl::Duration time) { return Wait(time); };
    download.progress = [&, i](uint64_t bytes) {
      if (progress != nullptr) progress->Set(i, bytes);
    };
    return DownloadBlob(paths, download, client);
  });
}

}  // namespace marcoro
