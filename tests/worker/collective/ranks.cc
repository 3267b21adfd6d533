#include "tests/worker/collective/ranks.h"

#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "worker/collective/gloo.h"
#include "worker/collective/shared_memory.h"
#include "worker/collective/single.h"

namespace marcoro {

std::string FolderKeyStore::Path(const std::string& key) const {
  return absl::StrCat(folder_, "/", absl::StrReplaceAll(key, {{"/", "_"}}));
}

absl::Status FolderKeyStore::Set(const std::string& key, const std::string& value) {
  const std::string unfinished = absl::StrCat(Path(key), ".", getpid());
  std::ofstream(unfinished, std::ios::binary) << value;
  std::filesystem::rename(unfinished, Path(key));
  return absl::OkStatus();
}

absl::StatusOr<std::string> FolderKeyStore::Get(const std::string& key, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (absl::Now() < deadline) {
    std::ifstream file(Path(key), std::ios::binary);
    if (file) {
      std::stringstream value;
      value << file.rdbuf();
      return value.str();
    }
    absl::SleepFor(absl::Milliseconds(1));  // a folder cannot be waited on without more machinery
  }
  return absl::DeadlineExceededError(absl::StrCat("no key ", key));
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = std::filesystem::temp_directory_path() / "marcoro-test-XXXXXX";
  MARCORO_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() { std::filesystem::remove_all(path_); }

void RunInThreads(int ranks, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

std::vector<int> RunInProcesses(int ranks, const std::function<int(int)>& body) {
  std::vector<pid_t> processes;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t process = fork();
    MARCORO_CHECK(process >= 0);
    if (process == 0) _exit(body(rank));
    processes.push_back(process);
  }
  std::vector<int> statuses;
  for (const pid_t process : processes) {
    int status = 0;
    MARCORO_CHECK(waitpid(process, &status, 0) == process);
    statuses.push_back(status);
  }
  return statuses;
}

absl::StatusOr<std::unique_ptr<Communicator>> Connect(const std::string& transport, int rank,
                                                      int ranks, KeyStore& keys,
                                                      absl::Duration timeout) {
  if (transport == "single") return MakeSingleCommunicator();
  if (transport == "gloo") {
    GlooOptions options;
    options.rank = rank;
    options.size = ranks;
    options.connect_timeout = absl::Seconds(30);
    options.timeout = timeout;
    return MakeGlooCommunicator(options, keys);
  }
  SharedMemoryOptions options;
  options.rank = rank;
  options.size = ranks;
  options.connect_timeout = absl::Seconds(30);
  options.timeout = timeout;
  return MakeSharedMemoryCommunicator(options, keys);
}

std::vector<float> PartialSums(int rank, size_t count) {
  std::mt19937 random(static_cast<unsigned>(1000 + rank));
  std::vector<float> values(count);
  for (float& value : values) {
    const uint32_t bits = static_cast<uint32_t>(random());
    const uint32_t exponent = 127 - 12 + (bits >> 23) % 25;
    value = std::bit_cast<float>((bits & 0x807fffffu) | (exponent << 23));
  }
  return values;
}

std::vector<float> ExpectedTreeSum(int first_rank, int ranks, size_t count) {
  if (ranks == 1) return PartialSums(first_rank, count);
  std::vector<float> left = ExpectedTreeSum(first_rank, ranks / 2, count);
  const std::vector<float> right = ExpectedTreeSum(first_rank + ranks / 2, ranks / 2, count);
  for (size_t i = 0; i < count; ++i) left[i] += right[i];
  return left;
}

int64_t FirstDifference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return static_cast<int64_t>(std::min(a.size(), b.size()));
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return static_cast<int64_t>(i);
    }
  }
  return -1;
}

}  // namespace marcoro
