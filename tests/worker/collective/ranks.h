// Helpers for tests with several ranks, as threads of this process or as processes of their own.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collective/communicator.h"
#include "worker/collective/key_store.h"

namespace marcoro {

// Keys as files of a folder of its own, so that processes which share nothing else find each other.
class FolderKeyStore : public KeyStore {
 public:
  explicit FolderKeyStore(std::string folder) : folder_(std::move(folder)) {}
  absl::Status Set(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override;

 private:
  std::string Path(const std::string& key) const;
  const std::string folder_;
};

// A new folder that is removed with everything in it at the end of the scope.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Runs body(0) … body(ranks - 1) at the same time, each in its thread.
void RunInThreads(int ranks, const std::function<void(int)>& body);

// The same, each in a forked process that ends with body's value as its exit code. The calling
// process must have no other threads. Returns each process's status as waitpid gives it.
std::vector<int> RunInProcesses(int ranks, const std::function<int(int)>& body);

// "single", "gloo" or "shared-memory", with this timeout for each operation and 30 s for
// connecting.
absl::StatusOr<std::unique_ptr<Communicator>> Connect(const std::string& transport, int rank,
                                                      int ranks, KeyStore& keys,
                                                      absl::Duration timeout);

// Rank `rank`'s part of a sum whose value depends on the order of addition: magnitudes from 2^-12
// to 2^12, both signs.
std::vector<float> PartialSums(int rank, size_t count);

// Written independently of the code under test: halves, added recursively.
std::vector<float> ExpectedTreeSum(int first_rank, int ranks, size_t count);

// Index of the first element whose bits differ, or -1.
int64_t FirstDifference(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace marcoro
