// Blocks of a cluster, and their distributed shared memory.
#include "kernels/cuda/device/cluster.h"

#include <array>
#include <numeric>

#include "kernels/cuda/device/bulk_copy.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "tests/kernels/simt/reports.h"

namespace marcoro::cuda {
namespace {

using simt::OnlyReports;
using simt::ReportsOf;
using ::testing::Each;
using ::testing::HasSubstr;

constexpr char kFile[] = "cluster_test.cc";

TEST(ClusterTest, BlocksKnowTheirPlace) {
  int threads = 0;
  simt::Launch({.grid_x = 8, .grid_y = 2, .threads = 32, .cluster_blocks = 4}, [&] {
    EXPECT_EQ(ClusterBlocks(), 4);
    EXPECT_EQ(ClusterRank(), BlockIndexX() % 4);
    ++threads;
  });
  EXPECT_EQ(threads, 8 * 2 * 32);
}

TEST(ClusterTest, ABlockReadsAndWritesAnothersSharedMemory) {
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    simt::Launch({.grid_x = 4, .threads = 64, .shared_bytes = 1024, .cluster_blocks = 4}, [] {
      const SharedArray<int> values(0, 64);
      const SharedArray<int> received(256, 128);
      const int rank = ClusterRank();
      values.Store(ThreadIndex(), rank * 100 + ThreadIndex());
      SyncCluster();
      const int next = (rank + 1) % 4;
      const ClusterArray<int> theirs(values, next);
      EXPECT_EQ(theirs.Load(ThreadIndex()), next * 100 + ThreadIndex());
      const auto pair = theirs.LoadAs<Words2>(ThreadIndex() / 2 * 2);
      EXPECT_EQ(static_cast<int>(pair.word[1]), next * 100 + (ThreadIndex() | 1));
      const ClusterArray<int> inbox(received, next);
      inbox.Store(ThreadIndex() * 2, rank);
      inbox.Store(ThreadIndex() * 2 + 1, ThreadIndex());
      SyncCluster();
      EXPECT_EQ(received.Load(ThreadIndex() * 2), (rank + 3) % 4);
      EXPECT_EQ(received.Load(ThreadIndex() * 2 + 1), ThreadIndex());
    });
  }
}

TEST(ClusterTest, BlocksOfAClusterDoNotShareByAccident) {
  simt::Launch({.grid_x = 2, .threads = 32, .shared_bytes = 128, .cluster_blocks = 2}, [] {
    const SharedArray<int> values(0, 32);
    values.Store(Lane(), ClusterRank());
    SyncCluster();
    EXPECT_EQ(values.Load(Lane()), ClusterRank());
  });
}

TEST(ClusterTest, ArrivalAndWaitMayLieApart) {
  simt::Launch({.grid_x = 2, .threads = 64, .shared_bytes = 256, .cluster_blocks = 2}, [] {
    const SharedArray<int> values(0, 64);
    values.Store(ThreadIndex(), ClusterRank());
    ArriveAtCluster();
    SyncBlock();
    WaitForCluster();
    EXPECT_EQ(ClusterArray<int>(values, 1 - ClusterRank()).Load(63 - ThreadIndex()),
              1 - ClusterRank());
    SyncCluster();
  });
}

TEST(ClusterTest, ABlocksBarrierDoesNotOrderTheCluster) {
  int stored = 0;
  int line = 0;
  const auto reports =
      ReportsOf({.grid_x = 2, .threads = 32, .shared_bytes = 128, .cluster_blocks = 2}, [&] {
        const SharedArray<int> values(0, 32);
        SyncCluster();
        values.Store(Lane(), 1);
        SyncBlock();
        ++stored;
        while (stored < 64) simt::Pause();
        const ClusterArray<int> theirs(values, 1 - ClusterRank());
        line = __LINE__ + 1;
        theirs.Load(Lane());
        SyncCluster();
      });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "wrote without a barrier since"));
  EXPECT_THAT(reports, Each(HasSubstr(" of block ")));
}

TEST(ClusterTest, ABlockThatIsNotKnownToRunIsNotAccessed) {
  int line = 0;
  const auto reports =
      ReportsOf({.grid_x = 2, .threads = 32, .shared_bytes = 128, .cluster_blocks = 2}, [&] {
        const SharedArray<int> values(0, 32);
        line = __LINE__ + 1;
        const ClusterArray<int> theirs(values, 1 - ClusterRank());
        SyncCluster();
      });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "nothing says yet that block"));
}

TEST(ClusterTest, ABlockThatHasEndedIsNotAccessed) {
  std::vector<std::string> reports;
  int line = 0;
  for (uint64_t seed = 0; seed < 20 && reports.empty(); ++seed) {  // it may end just in time
    simt::SetSeed(seed);
    reports =
        ReportsOf({.grid_x = 2, .threads = 32, .shared_bytes = 128, .cluster_blocks = 2}, [&] {
          const SharedArray<int> values(0, 32);
          SyncCluster();
          if (ClusterRank() == 1) return;
          for (int i = 0; i < 4; ++i) SyncWarp();
          line = __LINE__ + 1;
          ClusterArray<int>(values, 1).Load(Lane());
        });
  }
  EXPECT_THAT(reports, OnlyReports(kFile, line, "block 1, which has ended"));
}

TEST(ClusterTest, AClusterBarrierThatABlockNeverReachesIsADeadlock) {
  int line = 0;
  const auto reports = ReportsOf({.grid_x = 2, .threads = 32, .cluster_blocks = 2}, [&] {
    line = __LINE__ + 1;
    if (ClusterRank() == 0) SyncCluster();
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "32 of 64 arrived"));
}

TEST(ClusterTest, ArrivalsAndWaitsAlternate) {
  EXPECT_THAT(ReportsOf({.threads = 32}, [] { WaitForCluster(); }),
              ::testing::ElementsAre(HasSubstr("a wait without an arrival")));
  EXPECT_THAT(ReportsOf({.grid_x = 2, .threads = 32, .cluster_blocks = 2},
                        [] {
                          ArriveAtCluster();
                          ArriveAtCluster();
                        }),
              ::testing::ElementsAre(HasSubstr("a second arrival without a wait")));
  EXPECT_THAT(ReportsOf({.threads = 32}, [] { ArriveAtCluster(); }),
              Each(HasSubstr("between its arrival at the cluster's barrier and the wait")));
}

TEST(ClusterTest, ThereIsNoBlockBeyondTheCluster) {
  EXPECT_THAT(ReportsOf({.grid_x = 2, .threads = 32, .shared_bytes = 16, .cluster_blocks = 2},
                        [] {
                          SyncCluster();
                          ClusterArray<int>(SharedArray<int>(0, 1), 2).Load(0);
                        }),
              ::testing::ElementsAre(HasSubstr("block 2 of a cluster of 2")));
}

// Block 0 sends a row to the others as soon as they have read the last one.
TEST(ClusterTest, MbarriersOrderBlocksAcrossTheCluster) {
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    int sum = 0;
    simt::Launch({.grid_x = 2, .threads = 32, .shared_bytes = 128, .cluster_blocks = 2}, [&] {
      const Mbarrier full(0);
      const Mbarrier empty(8);
      const SharedArray<int> row(64, 1);
      if (Lane() == 0) {
        full.Initialize(1);
        empty.Initialize(32);
        PublishMbarriers();
      }
      SyncCluster();
      for (uint32_t i = 0; i < 10; ++i) {
        if (ClusterRank() == 0 && Lane() == 0) {
          empty.WaitForCluster((i & 1) ^ 1);
          ClusterArray<int>(row, 1).Store(0, static_cast<int>(i));
          full.ArriveAt(1);
        }
        if (ClusterRank() == 1) {
          full.WaitForCluster(i & 1);
          sum += row.Load(0);
          empty.ArriveAt(0);
        }
      }
      SyncCluster();
    });
    EXPECT_EQ(sum, 45 * 32);
  }
}

TEST(ClusterTest, ABulkCopyGoesToSeveralBlocks) {
  struct alignas(16) Source {
    std::array<int, 64> values;
  } source;
  std::iota(source.values.begin(), source.values.end(), 0);
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    simt::Launch({.grid_x = 4, .threads = 32, .shared_bytes = 512, .cluster_blocks = 4}, [&] {
      const Mbarrier loaded(0);
      const SharedArray<int> to(128, 64);
      if (Lane() == 0) {
        loaded.Initialize(1);
        PublishMbarriers();
        if (ClusterRank() != 2) loaded.ArriveAndExpect(256);
      }
      SyncCluster();
      if (ClusterRank() == 1 && Lane() == 0) {
        CopyBulkToBlocks(to.Address(0), source.values.data(), 256, loaded, 0b1011);
      }
      if (ClusterRank() != 2) {
        loaded.Wait(0);
        EXPECT_EQ(to.Load(63 - Lane()), 63 - Lane());
      } else {
        EXPECT_EQ(to.Load(Lane()), -1);
      }
      SyncCluster();
    });
  }
}

}  // namespace
}  // namespace marcoro::cuda
