// Measures all transports in one run: collective_bench [ranks]. Prints, for ranks as processes of
// this host, the median and 90th percentile of each operation's time on rank 0.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tests/worker/collective/ranks.h"

namespace marcoro {
namespace {

using Clock = std::chrono::steady_clock;

struct Percentiles {
  double median;
  double high;
};

template <typename Operation>
Percentiles Measure(int repetitions, const Operation& operation) {
  std::vector<double> microseconds;
  for (int i = 0; i < repetitions + repetitions / 10; ++i) {
    const auto start = Clock::now();
    if (!operation().ok()) std::abort();
    const std::chrono::duration<double, std::micro> took = Clock::now() - start;
    if (i >= repetitions / 10) microseconds.push_back(took.count());
  }
  std::sort(microseconds.begin(), microseconds.end());
  return {microseconds[microseconds.size() / 2], microseconds[microseconds.size() * 9 / 10]};
}

int RunRank(const std::string& transport, const std::string& folder, int rank, int ranks) {
  FolderKeyStore keys(folder);
  auto communicator = Connect(transport, rank, ranks, keys, absl::Seconds(60));
  if (!communicator.ok()) return 1;
  const auto print = [&](const char* operation, size_t bytes, Percentiles time) {
    if (rank != 0) return;
    std::printf("%-13s %-10s %9zu bytes  median %9.1f us  p90 %9.1f us  %6.2f GB/s\n",
                transport.c_str(), operation, bytes, time.median, time.high,
                static_cast<double>(bytes) / time.median * 1e-3);
    std::fflush(stdout);
  };
  for (const size_t bytes : {4, 16 << 10, 128 << 10, 1 << 20, 8 << 20}) {
    std::vector<float> data(bytes / sizeof(float), 1e-30f);
    const int repetitions = bytes > (1 << 20) ? 50 : bytes > (64 << 10) ? 300 : 3000;
    print("all-reduce", bytes, Measure(repetitions, [&] {
            return (*communicator)->AllReduceTree(absl::MakeSpan(data));
          }));
  }
  std::vector<float> send(16000);
  std::vector<float> receive(rank == 0 ? send.size() * static_cast<size_t>(ranks) : 0);
  print("gather", send.size() * sizeof(float), Measure(1000, [&] {
          return (*communicator)->GatherToRoot(send, absl::MakeSpan(receive));
        }));
  // Answered by a byte of data, as a step is: a broadcast alone could run ahead of its receivers.
  for (const size_t bytes : {1 << 10, 16 << 10, 256 << 10}) {
    print("plan+sum", bytes, Measure(1000, [&] {
            std::string message(rank == 0 ? bytes : 0, 'x');
            float one[1] = {0};
            absl::Status status = (*communicator)->BroadcastFromRoot(&message);
            return status.ok() ? (*communicator)->AllReduceTree(one) : status;
          }));
  }
  return 0;
}

// What one core copies, as the limit to compare with.
void PrintCopySpeed() {
  for (const size_t bytes : {16 << 10, 1 << 20, 8 << 20}) {
    std::vector<char> from(bytes, 1);
    std::vector<char> to(bytes);
    const Percentiles time = Measure(100, [&] {
      std::memcpy(to.data(), from.data(), bytes);
      asm volatile("" : : "r"(to.data()) : "memory");
      return absl::OkStatus();
    });
    std::printf("%-13s %-10s %9zu bytes  median %9.1f us  p90 %9.1f us  %6.2f GB/s\n", "one core",
                "memcpy", bytes, time.median, time.high,
                static_cast<double>(bytes) / time.median * 1e-3);
  }
}

}  // namespace
}  // namespace marcoro

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 2;
  marcoro::PrintCopySpeed();
  std::fflush(stdout);
  for (const char* transport : {"shared-memory", "gloo"}) {
    marcoro::TemporaryFolder folder;
    for (const int status : marcoro::RunInProcesses(ranks, [&](int rank) {
           return marcoro::RunRank(transport, folder.path(), rank, ranks);
         })) {
      if (status != 0) return 1;
    }
  }
}
