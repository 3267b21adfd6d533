// Mbarriers, and bulk and tensor copies that end at them.
#include <array>
#include <numeric>
#include <vector>

#include "kernels/cuda/device/bulk_copy.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/tensor_map.h"
#include "kernels/cuda/device/thread.h"
#include "kernels/cuda/device/warpgroup_matrix.h"
#include "tests/kernels/simt/reports.h"

namespace marcoro::cuda {
namespace {

using simt::OnlyReports;
using simt::ReportsOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr char kFile[] = "mbarrier_test.cc";

struct alignas(16) Source {
  std::array<int, 4096> values;
  Source() { std::iota(values.begin(), values.end(), 0); }
};

// Thread 0 makes the barrier, and all know it.
Mbarrier MakeBarrier(int byte_offset, int arrivals) {
  const Mbarrier barrier(byte_offset);
  if (ThreadIndex() == 0) {
    barrier.Initialize(arrivals);
    PublishMbarriers();
  }
  SyncBlock();
  return barrier;
}

TEST(MbarrierTest, WhoWaitsForAPhaseIsBehindThoseWhoArrived) {
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    simt::Launch({.threads = 96, .shared_bytes = 512}, [] {
      const Mbarrier barrier = MakeBarrier(0, 64);
      const SharedArray<int> values(128, 64);
      if (Warp() < 2) {
        values.Store(ThreadIndex(), ThreadIndex());
        barrier.Arrive();
      } else {
        barrier.Wait(0);
        EXPECT_EQ(values.Load(Lane() * 2), Lane() * 2);
      }
    });
  }
}

TEST(MbarrierTest, WhoDoesNotWaitIsNot) {
  int line = 0;
  int arrived = 0;
  const auto reports = ReportsOf({.threads = 64, .shared_bytes = 256}, [&] {
    const Mbarrier barrier = MakeBarrier(0, 32);
    const SharedArray<int> values(128, 32);
    if (Warp() == 0) {
      values.Store(Lane(), 1);
      barrier.Arrive();
      ++arrived;
    } else {
      while (arrived < 32) simt::Pause();
      line = __LINE__ + 1;
      values.Load(Lane());
    }
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "wrote without a barrier since"));
}

TEST(MbarrierTest, AProducerAndConsumersShareABufferOverManyPhases) {
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    int sum = 0;
    simt::Launch({.threads = 96, .shared_bytes = 512}, [&] {
      const Mbarrier full = MakeBarrier(0, 1);
      const Mbarrier empty = MakeBarrier(8, 64);
      const SharedArray<int> value(128, 1);
      for (uint32_t i = 0; i < 20; ++i) {
        if (ThreadIndex() == 64) {
          empty.Wait((i & 1) ^ 1);  // at once the first time
          value.Store(0, static_cast<int>(i));
          full.Arrive();
        } else if (Warp() < 2) {
          full.Wait(i & 1);
          sum += value.Load(0);
          empty.Arrive();
        }
      }
    });
    EXPECT_EQ(sum, 190 * 64);
  }
}

TEST(MbarrierTest, AnArrivalThatNeverComesIsADeadlock) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 64, .shared_bytes = 16}, [&] {
    const Mbarrier barrier = MakeBarrier(0, 64);
    if (ThreadIndex() != 5) barrier.Arrive();
    line = __LINE__ + 1;
    barrier.Wait(0);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "1 of 64 arrivals and 0 bytes"));
}

TEST(MbarrierTest, MoreArrivalsThanExpectedAreAFault) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 4096}, [&] {
    const Mbarrier barrier = MakeBarrier(0, 1);
    line = __LINE__ + 2;
    if (Lane() == 0) barrier.ArriveAndExpect(16);  // the phase cannot end: no copy comes
    if (Lane() == 0) barrier.Arrive();
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "more arrivals"));
}

TEST(MbarrierTest, UseBeforeInitializationIsAFault) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 16}, [&] {
    line = __LINE__ + 1;
    Mbarrier(0).Arrive();
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "no mbarrier was initialized here"));
}

TEST(MbarrierTest, UseWithoutABarrierBehindInitializationIsReported) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 16}, [&] {
    const Mbarrier barrier(0);
    if (Lane() == 0) barrier.Initialize(31);
    Ballot(true);
    line = __LINE__ + 1;
    if (Lane() != 0) barrier.Arrive();
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "wrote without a barrier since"));
}

TEST(BulkCopyTest, DataIsThereBehindTheWait) {
  const Source source;
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    simt::Launch({.threads = 64, .shared_bytes = 128 + 2048}, [&] {
      const Mbarrier loaded = MakeBarrier(0, 1);
      const SharedArray<int> to(128, 512);
      for (uint32_t round = 0; round < 4; ++round) {
        if (ThreadIndex() == 0) {
          loaded.ArriveAndExpect(2048);
          CopyBulk(to.Address(0), &source.values[round * 512], 1024, loaded);
          CopyBulk(to.Address(256), &source.values[round * 512 + 256], 1024, loaded);
        }
        loaded.Wait(round & 1);
        for (int i = ThreadIndex(); i < 512; i += 64) {
          ASSERT_EQ(to.Load(i), static_cast<int>(round) * 512 + i);
        }
        SyncBlock();
      }
    });
  }
}

TEST(BulkCopyTest, DataIsNotThereBeforeTheWait) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 256}, [&] {
    const Mbarrier loaded = MakeBarrier(0, 1);
    const SharedArray<int> to(128, 32);
    if (Lane() == 0) {
      loaded.ArriveAndExpect(128);
      CopyBulk(to.Address(0), &source.values[0], 128, loaded);
    }
    Ballot(true);
    line = __LINE__ + 1;
    to.Load(Lane());
    loaded.Wait(0);
    EXPECT_EQ(to.Load(Lane()), Lane());
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "which a bulk copy"));
  EXPECT_THAT(reports, SizeIs(32));
}

TEST(BulkCopyTest, ACopyIntoWhatOthersHaveReadNeedsABarrier) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 256}, [&] {
    const Mbarrier loaded = MakeBarrier(0, 1);
    const SharedArray<int> to(128, 32);
    to.Load(Lane());
    Ballot(true);
    if (Lane() == 0) {
      loaded.ArriveAndExpect(128);
      line = __LINE__ + 1;
      CopyBulk(to.Address(0), &source.values[0], 128, loaded);
    }
    loaded.Wait(0);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "read without a barrier since"));
}

TEST(BulkCopyTest, BytesThatNobodyCopiesAreADeadlock) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 256}, [&] {
    const Mbarrier loaded = MakeBarrier(0, 1);
    if (Lane() == 0) {
      loaded.ArriveAndExpect(128);
      CopyBulk(SharedMemory() + 128, &source.values[0], 112, loaded);
    }
    line = __LINE__ + 1;
    loaded.Wait(0);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "0 of 1 arrivals and 16 bytes"));
}

TEST(BulkCopyTest, ACopyThatNobodyWaitsForIsReported) {
  const Source source;
  std::vector<std::string> reports;
  int line = 0;
  for (uint64_t seed = 0; seed < 20 && reports.empty(); ++seed) {  // it may end before the block
    simt::SetSeed(seed);
    reports = ReportsOf({.threads = 32, .shared_bytes = 256}, [&] {
      const Mbarrier loaded = MakeBarrier(0, 1);
      if (Lane() != 0) return;
      loaded.ArriveAndExpect(128);
      line = __LINE__ + 1;
      CopyBulk(SharedMemory() + 128, &source.values[0], 128, loaded);
    });
  }
  EXPECT_THAT(reports, OnlyReports(kFile, line, "ends while this copy"));
}

TEST(BulkCopyTest, TheBarrierIsPublishedFirst) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 256}, [&] {
    const Mbarrier loaded(0);
    if (Lane() == 0) loaded.Initialize(1);
    SyncBlock();
    if (Lane() == 0) {
      loaded.ArriveAndExpect(128);
      line = __LINE__ + 1;
      CopyBulk(SharedMemory() + 128, &source.values[0], 128, loaded);
    }
    loaded.Wait(0);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "not published"));
}

TEST(BulkCopyTest, OddSizesAndAddressesAreFaults) {
  const Source source;
  for (const int bytes : {8, 0, -16, 20}) {
    EXPECT_THAT(ReportsOf({.threads = 32, .shared_bytes = 256},
                          [&] {
                            const Mbarrier loaded = MakeBarrier(0, 1);
                            CopyBulk(SharedMemory() + 128, &source.values[0], bytes, loaded);
                          }),
                ::testing::ElementsAre(HasSubstr("no multiples of 16")));
  }
  EXPECT_THAT(ReportsOf({.threads = 32, .shared_bytes = 256},
                        [&] {
                          const Mbarrier loaded = MakeBarrier(0, 1);
                          CopyBulk(SharedMemory() + 128, &source.values[1], 16, loaded);
                        }),
              ::testing::ElementsAre(HasSubstr("no multiples of 16")));
  EXPECT_THAT(ReportsOf({.threads = 32, .shared_bytes = 256},
                        [&] {
                          const Mbarrier loaded = MakeBarrier(0, 1);
                          CopyBulk(SharedMemory() + 128, &source.values[0], 144, loaded);
                        }),
              ::testing::ElementsAre(HasSubstr("not an address of shared memory")));
}

// 100 rows of 96 columns, 192 bytes apart, of which element (r, c) is r * 128 + c.
struct alignas(16) Table {
  std::vector<uint16_t> values = std::vector<uint16_t>(100 * 96);
  Table() {
    for (size_t r = 0; r < 100; ++r) {
      for (size_t c = 0; c < 96; ++c) values[r * 96 + c] = static_cast<uint16_t>(r * 128 + c);
    }
  }
  TensorMapShape Shape() const {
    return {.data = values.data(),
            .element_bytes = 2,
            .rows = 100,
            .columns = 96,
            .stride_bytes = 192,
            .box_rows = 16,
            .box_columns = 64};
  }
};

void ExpectBox(const TensorMap& map, int row, int column, bool swizzled) {
  simt::Launch({.threads = 32, .shared_bytes = 2048 + 8}, [&] {
    const Mbarrier loaded = MakeBarrier(2048, 1);
    const SharedArray<uint16_t> box(0, 1024);
    if (Lane() == 0) {
      PrefetchTensorMap(map);
      loaded.ArriveAndExpect(2048);
      CopyTensor(box.Address(0), map, row, column, loaded);
    }
    loaded.Wait(0);
    for (int i = Lane(); i < 1024; i += 32) {
      const int r = i / 64;
      const int c = i % 64;
      // By hand: the 16 bytes of number n of row r lie at place n ^ (r % 8).
      const int place = swizzled ? r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8 : r * 64 + c;
      const bool inside = row + r >= 0 && row + r < 100 && column + c >= 0 && column + c < 96;
      ASSERT_EQ(box.Load(place), inside ? (row + r) * 128 + column + c : 0) << r << ", " << c;
      if (swizzled) {
        ASSERT_EQ(SwizzledOffset(r, c * 2), place * 2);
      }
    }
  });
}

TEST(TensorMapTest, CopiesABoxSwizzledOrNot) {
  const Table table;
  for (const bool swizzled : {false, true}) {
    TensorMapShape shape = table.Shape();
    shape.swizzled = swizzled;
    TensorMap map;
    ASSERT_TRUE(EncodeTensorMap(shape, &map));
    ExpectBox(map, 0, 0, swizzled);
    ExpectBox(map, 7, 24, swizzled);
    ExpectBox(map, 90, 64, swizzled);  // zeros beyond the last row and column
    ExpectBox(map, -3, -8, swizzled);
  }
}

TEST(TensorMapTest, ShapesThatTheCopyEngineDoesNotTakeAreRefused) {
  const Table table;
  TensorMap map;
  const auto refused = [&](auto change) {
    TensorMapShape shape = table.Shape();
    change(shape);
    return !EncodeTensorMap(shape, &map);
  };
  EXPECT_FALSE(refused([](TensorMapShape&) {}));
  EXPECT_TRUE(refused([](TensorMapShape& s) { s.stride_bytes = 200; }));
  EXPECT_TRUE(refused([](TensorMapShape& s) { s.box_columns = 32; }));
  EXPECT_TRUE(refused([](TensorMapShape& s) { s.box_columns = 128; }));
  EXPECT_TRUE(refused([](TensorMapShape& s) { s.box_rows = 257; }));
  EXPECT_TRUE(refused([](TensorMapShape& s) { s.rows = 0; }));
  EXPECT_TRUE(refused([](TensorMapShape& s) { s.element_bytes = 3; }));
  EXPECT_TRUE(refused([](TensorMapShape& s) { s.data = static_cast<const char*>(s.data) + 8; }));
}

TEST(TensorMapTest, ASwizzledBoxIsAlignedTo1024) {
  const Table table;
  TensorMap map;
  ASSERT_TRUE(EncodeTensorMap(table.Shape(), &map));
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 4096}, [&] {
    const Mbarrier loaded = MakeBarrier(0, 1);
    CopyTensor(SharedMemory() + 128, map, 0, 0, loaded);
  });
  EXPECT_THAT(reports, ::testing::ElementsAre(HasSubstr("not aligned")));
}

}  // namespace
}  // namespace marcoro::cuda
