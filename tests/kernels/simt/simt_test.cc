// Threads, barriers, warps and shared memory in the emulator.
#include <algorithm>
#include <bit>
#include <numeric>
#include <set>

#include "kernels/cuda/device/reduce.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/launch.h"
#include "tests/kernels/simt/reports.h"

namespace marcoro::cuda {
namespace {

using simt::OnlyReports;
using simt::ReportsOf;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kFile[] = "simt_test.cc";

TEST(SimtTest, EveryThreadOfTheGridRunsOnceAndKnowsItsPlace) {
  std::vector<int> runs(3 * 2 * 2 * 64);
  simt::Launch({.grid_x = 3, .grid_y = 2, .grid_z = 2, .threads = 64}, [&] {
    EXPECT_EQ(BlockThreads(), 64);
    EXPECT_EQ(GridX(), 3);
    EXPECT_EQ(GridY(), 2);
    EXPECT_EQ(Warp() * kWarpThreads + Lane(), ThreadIndex());
    const int block = (BlockIndexZ() * 2 + BlockIndexY()) * 3 + BlockIndexX();
    ++runs[static_cast<size_t>(block * 64 + ThreadIndex())];
  });
  EXPECT_THAT(runs, Each(1));
}

void AddKernel(const int* a, int* b, int value) { b[ThreadIndex()] = a[ThreadIndex()] + value; }

TEST(SimtTest, AKernelIsLaunchedWithItsArguments) {
  std::vector<int> a(32);
  std::iota(a.begin(), a.end(), 0);
  std::vector<int> b(32);
  Launch(Stream(), {.threads = 32}, AddKernel, a.data(), b.data(), 5);
  for (int i = 0; i < 32; ++i) EXPECT_EQ(b[static_cast<size_t>(i)], i + 5);
}

TEST(SimtTest, SharedMemoryBeginsAsNan) {
  simt::Launch({.grid_x = 2, .threads = 32, .shared_bytes = 128}, [&] {
    const SharedArray<float> values(0, 32);
    EXPECT_TRUE(std::isnan(values.Load(ThreadIndex())));
    values.Store(ThreadIndex(), 1);  // the next block sees nothing of it
  });
}

TEST(SimtTest, SharedMemoryIsAlignedTo1024) {
  simt::Launch({.threads = 32, .shared_bytes = 16},
               [&] { EXPECT_EQ(reinterpret_cast<uintptr_t>(SharedMemory()) % 1024, 0u); });
}

// Each thread passes its number to the one that mirrors it.
void Mirror(std::vector<int>& out, bool with_barrier) {
  const SharedArray<int> values(0, 128);
  values.Store(ThreadIndex(), ThreadIndex());
  if (with_barrier) SyncBlock();
  out[static_cast<size_t>(ThreadIndex())] = values.Load(127 - ThreadIndex());
}

TEST(SimtTest, ABarrierOrdersStoresBeforeLoads) {
  for (int seed = 0; seed < 20; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    std::vector<int> out(128);
    simt::Launch({.threads = 128, .shared_bytes = 512}, [&] { Mirror(out, true); });
    for (int i = 0; i < 128; ++i) EXPECT_EQ(out[static_cast<size_t>(i)], 127 - i);
  }
}

TEST(SimtTest, AMissingBarrierIsReportedByFileAndLine) {
  std::vector<int> out(128);
  int line = 0;
  const auto reports = ReportsOf({.threads = 128, .shared_bytes = 512}, [&] {
    const SharedArray<int> values(0, 128);
    values.Store(ThreadIndex(), ThreadIndex());
    line = __LINE__ + 1;
    out[static_cast<size_t>(ThreadIndex())] = values.Load(127 - ThreadIndex());
  });
  // Of two threads that mirror each other one comes later, if not by its load then by its store.
  EXPECT_THAT(reports, Contains(AllOf(HasSubstr(kFile + (":" + std::to_string(line))),
                                      HasSubstr("wrote without a barrier since"))));
}

TEST(SimtTest, AMissingBarrierChangesBitsUnderSomeSeed) {
  const simt::ReportCollector collector;
  std::set<std::vector<int>> results;
  for (int seed = 0; seed < 5; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    std::vector<int> out(128);
    simt::Launch({.threads = 128, .shared_bytes = 512}, [&] { Mirror(out, false); });
    results.insert(out);
  }
  EXPECT_THAT(results, SizeIs(::testing::Gt(1u)));
}

TEST(SimtTest, AWriteAfterAReadNeedsABarrierToo) {
  int reads = 0;
  int line = 0;
  const auto reports = ReportsOf({.threads = 64, .shared_bytes = 256}, [&] {
    const SharedArray<int> values(0, 64);
    values.Store(ThreadIndex(), 1);
    SyncBlock();
    values.Load(63 - ThreadIndex());
    ++reads;
    while (reads < 64) simt::Pause();  // it happens to be later: no barrier says so
    line = __LINE__ + 1;
    if (Warp() == 0) values.Store(ThreadIndex(), 2);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "read without a barrier since"));
  EXPECT_THAT(reports, SizeIs(32));
}

TEST(SimtTest, AWriteIsCheckedAgainstEveryReaderNotOnlyTheLast) {
  for (int unordered = 0; unordered < 4; ++unordered) {
    int reads = 0;
    int line = 0;
    const auto reports = ReportsOf({.threads = 160, .shared_bytes = 16}, [&] {
      const SharedArray<int> value(0, 1);
      if (Warp() < 4) value.Load(0);
      ++reads;
      while (reads < 160) simt::Pause();
      if (Warp() != unordered) SyncWarps(1, 128);
      line = __LINE__ + 1;
      if (ThreadIndex() == 128) value.Store(0, 2);
    });
    EXPECT_THAT(reports, OnlyReports(kFile, line, "read without a barrier since"));
    EXPECT_THAT(reports, SizeIs(1));
  }
}

TEST(SimtTest, AWarpBarrierOrdersItsWarpOnly) {
  const auto within = ReportsOf({.threads = 64, .shared_bytes = 256}, [&] {
    const SharedArray<int> values(0, 64);
    values.Store(ThreadIndex(), ThreadIndex());
    SyncWarp();
    EXPECT_EQ(values.Load(ThreadIndex() ^ 1), ThreadIndex() ^ 1);
  });
  EXPECT_THAT(within, IsEmpty());
  const auto across = ReportsOf({.threads = 64, .shared_bytes = 256}, [&] {
    const SharedArray<int> values(0, 64);
    values.Store(ThreadIndex(), ThreadIndex());
    SyncWarp();
    values.Load(ThreadIndex() ^ 32);
  });
  EXPECT_THAT(across, ::testing::Not(IsEmpty()));
}

TEST(SimtTest, AShuffleOrdersNoMemory) {
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 128}, [&] {
    const SharedArray<int> values(0, 32);
    values.Store(Lane(), Lane());
    ShuffleXor(0, 1);
    values.Load(Lane() ^ 1);
  });
  EXPECT_THAT(reports, Each(HasSubstr("without a barrier since")));
  EXPECT_THAT(reports, SizeIs(32));
}

TEST(SimtTest, SyncWarpsOrdersTheWarpsThatTakePart) {
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    std::vector<int> sums(4);
    simt::Launch({.threads = 128, .shared_bytes = 512}, [&] {
      const SharedArray<int> values(0, 128);
      const int pair = Warp() / 2;
      for (int round = 0; round < 3; ++round) {
        values.Store(ThreadIndex(), ThreadIndex() + round);
        SyncWarps(1 + pair, 64);
        if (ThreadIndex() % 64 == 63) {
          for (int i = 0; i < 64; ++i)
            sums[static_cast<size_t>(pair)] += values.Load(pair * 64 + i);
        }
        SyncWarps(1 + pair, 64);
      }
    });
    // 0 + … + 63 = 2016, 64 + … + 127 = 6112; 64 more of each in every round.
    EXPECT_THAT(sums, ::testing::ElementsAre(3 * 2016 + 192, 3 * 6112 + 192, 0, 0));
  }
}

TEST(SimtTest, LanesShuffleAndVote) {
  simt::Launch({.threads = 64}, [&] {
    EXPECT_EQ(Shuffle(100 + ThreadIndex(), 7), 100 + Warp() * 32 + 7);
    EXPECT_EQ(ShuffleXor(1.5f * static_cast<float>(Lane()), 5),
              1.5f * static_cast<float>(Lane() ^ 5));
    EXPECT_EQ(ShuffleXor(int64_t{1} << Lane(), 16), int64_t{1} << (Lane() ^ 16));
    EXPECT_EQ(Ballot(Lane() % 3 == 0), 0x49249249u);
    EXPECT_EQ(Ballot(ThreadIndex() >= 32), Warp() == 1 ? 0xffffffffu : 0u);
    EXPECT_EQ(SumOverWarp(1), 32);
    EXPECT_EQ(MaxOverWarp(static_cast<float>(-Lane())), 0);
  });
}

TEST(SimtTest, ABlockSumsUpInOneOrderWhateverTheSeed) {
  std::set<uint32_t> sums;
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    simt::Launch({.threads = 256, .shared_bytes = 32}, [&] {
      const SharedArray<float> warp_sums(0, 8);
      const float value = 1.0f / static_cast<float>(1 + ThreadIndex());
      sums.insert(FloatToBits(SumOverBlock(value, warp_sums)));
    });
  }
  EXPECT_THAT(sums, SizeIs(1));
}

TEST(SimtTest, AccessBeyondAnArrayIsAFault) {
  std::vector<int> reached(32);
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 256}, [&] {
    const SharedArray<int> values(0, 32);
    line = __LINE__ + 1;
    values.Store(ThreadIndex() + 1, 0);
    SyncBlock();
    reached[static_cast<size_t>(ThreadIndex())] = 1;
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "element 32 of an array of 32"));
  EXPECT_THAT(reports, SizeIs(1));
  EXPECT_THAT(reached, Each(0)) << "the launch was not abandoned";
}

TEST(SimtTest, ANegativeIndexIsAFault) {
  const int line = __LINE__ + 2;
  const auto reports =
      ReportsOf({.threads = 32, .shared_bytes = 256}, [] { SharedArray<float>(16, 4).Load(-1); });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "element -1 of an array of 4"));
}

TEST(SimtTest, AnArrayBeyondSharedMemoryIsAFault) {
  const int line = __LINE__ + 2;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 256},
                                 [] { const SharedArray<float> values(16, 61); });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "goes beyond the block's shared memory"));
}

TEST(SimtTest, AnUnalignedArrayIsAFault) {
  const int line = __LINE__ + 2;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 256},
                                 [] { const SharedArray<float> values(2, 4); });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "not aligned to 4 bytes"));
}

TEST(SimtTest, AnUnalignedVectorIsAFault) {
  const int line = __LINE__ + 3;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 256}, [] {
    const SharedArray<float> values(4, 8);  // its element 3 lies at byte 16, element 0 at byte 4
    values.LoadAs<Words4>(0);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "element 0 is not aligned to 16 bytes"));
  EXPECT_THAT(ReportsOf({.threads = 32, .shared_bytes = 256},
                        [] { SharedArray<float>(4, 8).LoadAs<Words4>(3); }),
              IsEmpty());
}

TEST(SimtTest, ABarrierThatPartOfTheBlockNeverReachesIsReported) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 64}, [&] {
    line = __LINE__ + 1;
    if (ThreadIndex() < 40) SyncBlock();
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "40 of 64 arrived"));
}

TEST(SimtTest, ABarrierAtTwoPlacesIsReported) {
  const auto reports = ReportsOf({.threads = 64}, [&] {
    if (Warp() == 0) {
      SyncBlock();
    } else {
      SyncBlock();
    }
  });
  EXPECT_THAT(reports, ::testing::Not(IsEmpty()));
  EXPECT_THAT(reports, Each(HasSubstr("threads wait at different places")));
}

TEST(SimtTest, AShuffleThatPartOfTheWarpLeavesOutIsReported) {
  int shuffle = 0;
  int barrier = 0;
  const auto reports = ReportsOf({.threads = 32}, [&] {
    shuffle = __LINE__ + 1;
    if (Lane() < 16) ShuffleXor(1, 1);
    barrier = __LINE__ + 1;
    SyncWarp();
  });
  EXPECT_THAT(
      reports,
      ::testing::UnorderedElementsAre(
          AllOf(HasSubstr(":" + std::to_string(shuffle) + ":"), HasSubstr("16 of 32 arrived")),
          AllOf(HasSubstr(":" + std::to_string(barrier) + ":"), HasSubstr("16 of 32 arrived"))));
}

TEST(SimtTest, NamedBarriersAgreeOnTheirThreads) {
  const auto reports = ReportsOf({.threads = 64}, [&] { SyncWarps(1, Warp() == 0 ? 32 : 64); });
  EXPECT_THAT(reports, ::testing::Not(IsEmpty()));
  EXPECT_THAT(ReportsOf({.threads = 64}, [&] { SyncWarps(16, 64); }),
              Each(HasSubstr("barrier 16 of 64 threads")));
}

// The order in which threads get to a point, over a few barriers.
std::vector<int> OrderOfThreads(uint64_t seed) {
  simt::SetSeed(seed);
  std::vector<int> order;
  simt::Launch({.grid_x = 3, .threads = 64}, [&] {
    for (int i = 0; i < 2; ++i) {
      order.push_back(BlockIndexX() * 64 + ThreadIndex());
      SyncBlock();
    }
  });
  return order;
}

TEST(SimtTest, ASeedRepeatsItsOrderAndOthersHaveOthers) {
  EXPECT_EQ(OrderOfThreads(7), OrderOfThreads(7));
  EXPECT_NE(OrderOfThreads(7), OrderOfThreads(8));
}

TEST(SimtTest, AWarpCanBeFarAheadOfAnother) {
  int most = 0;
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    int rounds[2] = {0, 0};
    simt::Launch({.threads = 64}, [&] {
      for (int i = 0; i < 20; ++i) {
        if (Lane() == 0) ++rounds[Warp()];
        most = std::max(most, std::abs(rounds[0] - rounds[1]));
        SyncWarp();
      }
    });
  }
  EXPECT_GE(most, 5);
}

TEST(SimtTest, AfterAnAbandonedLaunchTheNextOneRuns) {
  EXPECT_THAT(ReportsOf({.threads = 64, .cluster_blocks = 1},
                        [&] {
                          if (ThreadIndex() == 3) SyncBlock();
                        }),
              SizeIs(1));
  int runs = 0;
  simt::Launch({.threads = 64}, [&] {
    SyncBlock();
    ++runs;
  });
  EXPECT_EQ(runs, 64);
}

TEST(SimtDeathTest, MisuseEndsTheProcessUnlessItIsCollected) {
  EXPECT_DEATH(
      simt::Launch({.threads = 32, .shared_bytes = 16}, [] { SharedArray<int>(0, 4).Load(4); }),
      "simt_test.cc:[0-9]+: element 4 of an array of 4");
  EXPECT_DEATH(simt::Launch({.threads = 33}, [] {}), "a launch that no GPU takes");
}

}  // namespace
}  // namespace marcoro::cuda
