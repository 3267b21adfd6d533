// Kernels that run at the same time on several devices and wait for each other's flags.
#include "kernels/cuda/device/flags.h"

#include <vector>

#include "kernels/cuda/device/dependent_launch.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/launch.h"
#include "tests/kernels/simt/reports.h"

namespace marcoro::cuda {
namespace {

using simt::OnlyReports;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int kRanks = 4;
constexpr int kBlocks = 3;

struct Peers {
  const float* data[kRanks];
  uint32_t* flags[kRanks];  // of each rank: for each block and each peer, whether it is ready
};

// Each block tells all peers' same block that its rank's data is ready, waits for theirs, and adds
// up its part of all data in the order of ranks.
MARCORO_KERNEL(32, 1) SumOverPeersKernel(Peers peers, int rank, uint32_t turn, float* out) {
  WaitForKernelAhead();
  if (Lane() < kRanks) {
    StoreFlag(peers.flags[Lane()] + BlockIndexX() * kRanks + rank, turn);
    while (LoadFlag(peers.flags[rank] + BlockIndexX() * kRanks + Lane()) < turn) SpinPause();
  }
  SyncBlock();
  const int i = BlockIndexX() * 32 + Lane();
  float sum = peers.data[0][i];
  for (int peer = 1; peer < kRanks; ++peer) sum = Add(sum, peers.data[peer][i]);
  out[i] = sum;
  LaunchDependents();
}

MARCORO_KERNEL(32, 1) FillKernel(float* data, float value) {
  data[BlockIndexX() * 32 + Lane()] = value;
}

TEST(FlagsTest, RanksThatRunTogetherWaitForEachOther) {
  for (int seed = 0; seed < 20; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    std::vector<std::vector<float>> data(kRanks, std::vector<float>(kBlocks * 32, -1));
    std::vector<std::vector<float>> out(kRanks, std::vector<float>(kBlocks * 32, -1));
    std::vector<std::vector<uint32_t>> flags(kRanks, std::vector<uint32_t>(kBlocks * kRanks));
    Peers peers = {};
    std::vector<std::function<void()>> devices;
    for (size_t rank = 0; rank < kRanks; ++rank) {
      peers.data[rank] = data[rank].data();
      peers.flags[rank] = flags[rank].data();
    }
    for (size_t rank = 0; rank < kRanks; ++rank) {
      // The kernels of a device run one after the other: the sum finds its own data there, and
      // waits for the others'.
      devices.push_back([&, rank] {
        const LaunchShape shape = {.grid_x = kBlocks, .threads = 32};
        const float value = static_cast<float>(1 << rank);
        Launch(Stream(), shape, FillKernel, data[rank].data(), value);
        Launch(Stream(), shape, SumOverPeersKernel, peers, static_cast<int>(rank), 1u,
               out[rank].data());
      });
    }
    simt::LaunchTogether(devices);
    for (const auto& sums : out) EXPECT_THAT(sums, ::testing::Each(15.0f));
  }
}

TEST(FlagsTest, AFlagThatNobodySetsIsReported) {
  uint32_t flag = 0;
  int line = 0;
  const simt::ReportCollector collector;
  simt::LaunchTogether({[&] {
    simt::Launch({.threads = 32}, [&] {
      line = __LINE__ + 1;
      while (LoadFlag(&flag) == 0) SpinPause();
    });
  }});
  EXPECT_THAT(collector.reports(), OnlyReports("flags_test.cc", line, "nobody sets the flag"));
}

TEST(FlagsTest, KernelsOfOneDeviceRunInTheirOrder) {
  std::vector<int> order;
  simt::LaunchTogether({[&] {
    for (int kernel = 0; kernel < 4; ++kernel) {
      simt::Launch({.grid_x = 2, .threads = 32}, [&order, kernel] {
        SyncBlock();
        if (ThreadIndex() == 0) order.push_back(kernel);
      });
    }
  }});
  EXPECT_THAT(order, ElementsAre(0, 0, 1, 1, 2, 2, 3, 3));
}

TEST(FlagsTest, BlocksThatRunTogetherHaveTheirOwnSharedMemory) {
  const simt::ReportCollector collector;
  const auto launch = [] {
    simt::Launch({.grid_x = 4, .threads = 32, .shared_bytes = 128, .cluster_blocks = 2},
                 [] { SyncBlock(); });
  };
  simt::LaunchTogether({launch, launch});
  EXPECT_THAT(collector.reports(), IsEmpty());
}

}  // namespace
}  // namespace marcoro::cuda
