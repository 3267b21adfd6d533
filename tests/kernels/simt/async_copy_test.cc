// Copies of sm_80 into shared memory, in groups.
#include "kernels/cuda/device/async_copy.h"

#include <array>
#include <numeric>

#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "tests/kernels/simt/reports.h"

namespace marcoro::cuda {
namespace {

using simt::OnlyReports;
using simt::ReportsOf;

constexpr char kFile[] = "async_copy_test.cc";

struct alignas(16) Source {
  std::array<int, 512> values;
  Source() { std::iota(values.begin(), values.end(), 0); }
};

TEST(AsyncCopyTest, DataIsThereBehindTheWaitAndABarrier) {
  const Source source;
  for (int seed = 0; seed < 10; ++seed) {
    simt::SetSeed(static_cast<uint64_t>(seed));
    simt::Launch({.threads = 64, .shared_bytes = 1024}, [&] {
      const SharedArray<int> to(0, 256);
      CopyAsync16(to.Address(ThreadIndex() * 4), &source.values[ThreadIndex() * 4u]);
      CommitCopies();
      WaitCopies<0>();
      SyncBlock();
      for (int i = 0; i < 256; ++i) ASSERT_EQ(to.Load(i), i);
    });
  }
}

TEST(AsyncCopyTest, DataIsNotThereBeforeTheWait) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 512}, [&] {
    const SharedArray<int> to(0, 128);
    CopyAsync16(to.Address(Lane() * 4), &source.values[Lane() * 4u]);
    CommitCopies();
    line = __LINE__ + 1;
    EXPECT_EQ(to.Load(Lane() * 4), -1) << "not the 0xff that was there";
    WaitCopies<0>();
    EXPECT_EQ(to.Load(Lane() * 4), Lane() * 4);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "which an asynchronous copy of thread"));
}

TEST(AsyncCopyTest, AWaitMayLeaveTheNewestGroupsUnderWay) {
  const Source source;
  simt::Launch({.threads = 32, .shared_bytes = 3 * 512}, [&] {
    const SharedArray<int> to(0, 384);
    for (int group = 0; group < 3; ++group) {
      const int first = group * 128 + Lane() * 4;
      CopyAsync16(to.Address(first), &source.values[static_cast<size_t>(first)]);
      CommitCopies();
    }
    WaitCopies<1>();
    EXPECT_EQ(to.Load(Lane() * 4), Lane() * 4);
    EXPECT_EQ(to.Load(128 + Lane() * 4), 128 + Lane() * 4);
    {
      const simt::ReportCollector collector;
      EXPECT_EQ(to.Load(256 + Lane() * 4), -1);
      EXPECT_EQ(collector.reports().size(), 1u);
    }
    WaitCopies<0>();
    EXPECT_EQ(to.Load(256 + Lane() * 4), 256 + Lane() * 4);
  });
}

TEST(AsyncCopyTest, AWaitCoversTheCopiesOfTheThreadThatWaitsOnly) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 512}, [&] {
    const SharedArray<int> to(0, 128);
    CopyAsync16(to.Address(Lane() * 4), &source.values[Lane() * 4u]);
    CommitCopies();
    WaitCopies<0>();
    Ballot(true);  // all have waited, but no barrier says so
    line = __LINE__ + 1;
    to.Load((Lane() ^ 1) * 4);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "which an asynchronous copy of thread"));
}

TEST(AsyncCopyTest, ACopyIntoWhatOthersHaveReadNeedsABarrier) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 16}, [&] {
    const SharedArray<int> to(0, 4);
    if (Lane() > 0) to.Load(0);
    Ballot(true);
    line = __LINE__ + 1;
    if (Lane() == 0) CopyAsync16(to.Address(0), &source.values[0]);
    CommitCopies();
    WaitCopies<0>();
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "read without a barrier since"));
}

TEST(AsyncCopyTest, ZerosWhereNothingIsRead) {
  simt::Launch({.threads = 32, .shared_bytes = 512}, [&] {
    const SharedArray<int> to(0, 128);
    CopyAsync16(to.Address(Lane() * 4), nullptr, /*valid=*/false);
    CommitCopies();
    WaitCopies<0>();
    for (int i = 0; i < 4; ++i) EXPECT_EQ(to.Load(Lane() * 4 + i), 0);
  });
}

TEST(AsyncCopyTest, UnalignedCopiesAreFaults) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 1024}, [&] {
    line = __LINE__ + 1;
    CopyAsync16(SharedMemory() + Lane() * 16, &source.values[1]);
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "unaligned addresses"));
}

TEST(AsyncCopyTest, CopiesThatNobodyWaitsForAreReported) {
  const Source source;
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 512}, [&] {
    line = __LINE__ + 1;
    CopyAsync16(SharedMemory() + Lane() * 16, &source.values[0]);
    CommitCopies();
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "ends while its copies are under way"));
}

}  // namespace
}  // namespace marcoro::cuda
