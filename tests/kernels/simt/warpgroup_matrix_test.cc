// Products of a warpgroup, with fragments and shared memory laid out by hand from the figures of
// the PTX ISA.
#include "kernels/cuda/device/warpgroup_matrix.h"

#include <cmath>
#include <cstdlib>
#include <vector>

#include "kernels/cuda/device/bulk_copy.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/thread.h"
#include "tests/kernels/simt/reports.h"

namespace marcoro::cuda {
namespace {

using simt::OnlyReports;
using simt::ReportsOf;
using ::testing::HasSubstr;

constexpr char kFile[] = "warpgroup_matrix_test.cc";
constexpr int kRows = 64;
constexpr int kDepth = 64;  // four products

float A(int row, int k) { return static_cast<float>((row * 7 + k * 3) % 19 - 9); }
float B(int k, int column) {
  return static_cast<float>((k * 5 + column * 11 + column / 8) % 17 - 8);
}

void LoadA(int k, uint32_t (&a)[4]) {
  const int row = Warp() % 4 * 16 + Lane() / 4;
  const int first = k + Lane() % 4 * 2;
  a[0] = PackBf16(A(row, first), A(row, first + 1));
  a[1] = PackBf16(A(row + 8, first), A(row + 8, first + 1));
  a[2] = PackBf16(A(row, first + 8), A(row, first + 9));
  a[3] = PackBf16(A(row + 8, first + 8), A(row + 8, first + 9));
}

// B as a row of 64 elements for each column, the 16 bytes of number c of row r at place c ^ (r %
// 8); eight columns' 1024 bytes are `stride` apart.
void StoreB(int columns, int stride) {
  const SharedArray<uint16_t> b(0, columns / 8 * stride / 2);
  for (int i = ThreadIndex(); i < columns * kDepth; i += BlockThreads()) {
    const int column = i / kDepth;
    const int k = i % kDepth;
    const int place = ((k / 8) ^ (column % 8)) * 8 + k % 8;
    b.Store(column / 8 * stride / 2 + column % 8 * 64 + place, RoundBf16(B(k, column)));
  }
}

template <int kColumns>
void ExpectProduct(int stride) {
  std::vector<float> product(kRows * kColumns);
  simt::Launch({.threads = 128, .shared_bytes = kColumns / 8 * stride}, [&] {
    StoreB(kColumns, stride);
    FenceAsyncProxy();
    SyncBlock();
    uint32_t a[4][4];
    for (int k = 0; k < 4; ++k) LoadA(k * 16, a[k]);
    float d[kColumns / 2];
    for (float& value : d) value = std::nanf("");  // not accumulated: must not matter
    FenceWarpgroupMatrix(d);
    for (int k = 0; k < 4; ++k) {
      const uint64_t b = MatrixDescriptor(SharedMemory() + k * 32, stride);
      MultiplyWarpgroupMatrix(d, a[k], b, /*accumulate=*/k > 0);
    }
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<0>(d);
    for (int j = 0; j < kColumns / 8; ++j) {
      for (int half = 0; half < 2; ++half) {
        const int row = Warp() * 16 + Lane() / 4 + half * 8;
        const int column = j * 8 + Lane() % 4 * 2;
        product[static_cast<size_t>(row * kColumns + column)] = d[j * 4 + half * 2];
        product[static_cast<size_t>(row * kColumns + column + 1)] = d[j * 4 + half * 2 + 1];
      }
    }
  });
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += A(row, k) * B(k, column);
      ASSERT_EQ(product[static_cast<size_t>(row * kColumns + column)], sum)
          << row << ", " << column;
    }
  }
}

TEST(WarpgroupMatrixTest, FragmentsMultiplyLikeTheMatricesTheyAreOf) {
  ExpectProduct<8>(1024);
  ExpectProduct<16>(1024);
  ExpectProduct<32>(1024);
  ExpectProduct<64>(1024);
  ExpectProduct<128>(1024);
  ExpectProduct<256>(1024);
}

// A code of a whole number from -8 to 8, and 1/512 of it, which is subnormal.
uint32_t WholeCode(int value) {
  constexpr uint32_t kCodes[] = {0x00, 0x38, 0x40, 0x44, 0x48, 0x4a, 0x4c, 0x4e, 0x50};
  return kCodes[std::abs(value)] | (value < 0 ? 0x80u : 0);
}
uint32_t SmallCode(int value) {
  return static_cast<uint32_t>(std::abs(value)) | (value < 0 ? 0x80u : 0);
}

// Codes A(row, k) · 64 columns of B(k, column) / 512, for k below 64: two products, where the
// elements of a row lie as bytes do in the swizzle.
TEST(WarpgroupMatrixTest, FragmentsOfCodesMultiplyLikeTheMatricesTheyAreOf) {
  constexpr int kColumns = 64;
  std::vector<float> product(kRows * kColumns);
  simt::Launch({.threads = 128, .shared_bytes = kColumns / 8 * 1024}, [&] {
    const SharedArray<uint8_t> b(0, kColumns * 128);
    for (int i = ThreadIndex(); i < kColumns * kDepth; i += BlockThreads()) {
      const int column = i / kDepth;
      const int k = i % kDepth;
      const int place = ((k / 16) ^ (column % 8)) * 16 + k % 16;
      b.Store(column * 128 + place,
              static_cast<uint8_t>(SmallCode(static_cast<int>(B(k, column)) % 8)));
    }
    FenceAsyncProxy();
    SyncBlock();
    float d[kColumns / 2];
    FenceWarpgroupMatrix(d);
    for (int k = 0; k < kDepth; k += 32) {
      uint32_t a[4] = {};
      for (int r = 0; r < 4; ++r) {
        for (int byte = 0; byte < 4; ++byte) {
          const int row = Warp() % 4 * 16 + Lane() / 4 + r % 2 * 8;
          const int column = k + Lane() % 4 * 4 + byte + r / 2 * 16;
          a[r] |= WholeCode(static_cast<int>(A(row, column)) % 9) << (byte * 8);
        }
      }
      MultiplyWarpgroupCodes(d, a, MatrixDescriptor(SharedMemory() + k), /*accumulate=*/k > 0);
    }
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<0>(d);
    for (int i = 0; i < kColumns / 2; ++i) {
      const int row = Warp() * 16 + Lane() / 4 + i / 2 % 2 * 8;
      const int column = i / 4 * 8 + Lane() % 4 * 2 + i % 2;
      product[static_cast<size_t>(row * kColumns + column)] = d[i];
    }
  });
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      int sum = 0;
      for (int k = 0; k < kDepth; ++k) {
        sum += static_cast<int>(A(row, k)) % 9 * (static_cast<int>(B(k, column)) % 8);
      }
      ASSERT_EQ(product[static_cast<size_t>(row * kColumns + column)],
                static_cast<float>(sum) / 512)
          << row << ", " << column;
    }
  }
}

TEST(WarpgroupMatrixTest, TheStrideLeadsToTheNextEightColumns) { ExpectProduct<32>(3072); }

TEST(WarpgroupMatrixTest, TheDescriptorHasTheFieldsOfThePtxIsa) {
  simt::Launch({.threads = 32, .shared_bytes = 8192}, [] {
    // Start address / 16, leading offset / 16 (1) << 16, stride / 16 << 32, 128-byte swizzle << 62.
    EXPECT_EQ(MatrixDescriptor(SharedMemory() + 4096 + 32, 2048),
              0x102u | 1u << 16 | uint64_t{0x80} << 32 | uint64_t{1} << 62);
  });
}

// B, product and what follows in one place: `between` runs while the product is under way.
template <typename Between>
std::vector<std::string> ReportsOfProduct(bool proxy_fence, bool fence, const Between& between) {
  return ReportsOf({.threads = 128, .shared_bytes = 1024}, [&] {
    StoreB(8, 1024);
    if (proxy_fence) FenceAsyncProxy();
    SyncBlock();
    uint32_t a[4];
    LoadA(0, a);
    float d[4] = {};
    if (fence) FenceWarpgroupMatrix(d);
    MultiplyWarpgroupMatrix(d, a, MatrixDescriptor(SharedMemory()));
    CommitWarpgroupMatrix();
    between(d);
    WaitWarpgroupMatrix<0>(d);
  });
}

TEST(WarpgroupMatrixTest, StoresNeedAProxyFenceBeforeAProduct) {
  const auto nothing = [](float(&)[4]) {};
  EXPECT_THAT(ReportsOfProduct(true, true, nothing), ::testing::IsEmpty());
  const auto reports = ReportsOfProduct(false, true, nothing);
  EXPECT_THAT(reports, ::testing::Not(::testing::IsEmpty()));
  EXPECT_THAT(reports, ::testing::Each(HasSubstr("wrote without a FenceAsyncProxy since")));
}

TEST(WarpgroupMatrixTest, RegistersNeedAFenceBeforeAProduct) {
  const auto reports = ReportsOfProduct(true, false, [](float(&)[4]) {});
  EXPECT_THAT(reports, ::testing::Each(HasSubstr("no FenceWarpgroupMatrix")));
  EXPECT_THAT(reports, ::testing::SizeIs(::testing::Ge(1u)));
}

TEST(WarpgroupMatrixTest, AccumulatorsAreLeftAloneUntilTheWait) {
  const auto reports = ReportsOfProduct(true, true, [](float(&d)[4]) {
    EXPECT_TRUE(std::isnan(d[1]));
    d[1] = 0;
  });
  EXPECT_THAT(reports, ::testing::Each(HasSubstr("accumulators were touched")));
  EXPECT_THAT(reports, ::testing::SizeIs(::testing::Ge(1u)));
}

TEST(WarpgroupMatrixTest, BIsLeftAloneUntilTheWait) {
  const auto reports = ReportsOfProduct(true, true, [](float(&)[4]) {
    SyncBlock();
    if (ThreadIndex() == 0) SharedArray<uint16_t>(0, 512).Store(0, 0);
  });
  EXPECT_THAT(reports, ::testing::Not(::testing::IsEmpty()));
}

TEST(WarpgroupMatrixTest, BMayBeWrittenBehindTheWaitAndABarrierOnly) {
  for (const bool with_barrier : {true, false}) {
    int waited = 0;
    const auto reports = ReportsOf({.threads = 160, .shared_bytes = 1024 + 8}, [&] {
      const Mbarrier read(1024);
      StoreB(8, 1024);
      FenceAsyncProxy();
      if (ThreadIndex() == 0) read.Initialize(4);
      SyncBlock();
      if (Warp() < 4) {
        uint32_t a[4];
        LoadA(0, a);
        float d[4] = {};
        FenceWarpgroupMatrix(d);
        MultiplyWarpgroupMatrix(d, a, MatrixDescriptor(SharedMemory()));
        CommitWarpgroupMatrix();
        WaitWarpgroupMatrix<0>(d);
        if (Lane() == 5) read.Arrive();  // any one lane speaks for its warp
        ++waited;
      } else {
        while (waited < 128) simt::Pause();
        if (with_barrier) read.Wait(0);
        if (Lane() == 0) SharedArray<uint16_t>(0, 512).Store(0, 0);
      }
    });
    EXPECT_EQ(reports.empty(), with_barrier);
  }
}

TEST(WarpgroupMatrixTest, AWaitMayLeaveTheNewestGroupUnderWay) {
  simt::Launch({.threads = 128, .shared_bytes = 1024}, [&] {
    StoreB(8, 1024);
    FenceAsyncProxy();
    SyncBlock();
    uint32_t a[4];
    LoadA(0, a);
    const uint64_t b = MatrixDescriptor(SharedMemory());
    float first[4];
    float second[4];
    FenceWarpgroupMatrix(first);
    MultiplyWarpgroupMatrix(first, a, b, /*accumulate=*/false);
    CommitWarpgroupMatrix();
    FenceWarpgroupMatrix(second);
    MultiplyWarpgroupMatrix(second, a, b, /*accumulate=*/false);
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<1>(first);
    EXPECT_FALSE(std::isnan(first[0]));
    EXPECT_TRUE(std::isnan(second[0]));
    WaitWarpgroupMatrix<0>(second);
    EXPECT_EQ(first[0], second[0]);
    EXPECT_EQ(first[3], second[3]);
  });
}

TEST(WarpgroupMatrixTest, AProductThatNobodyWaitsForIsReported) {
  const auto reports = ReportsOf({.threads = 128, .shared_bytes = 1024}, [&] {
    const uint32_t a[4] = {};
    float d[4];
    FenceWarpgroupMatrix(d);
    MultiplyWarpgroupMatrix(d, a, MatrixDescriptor(SharedMemory()));
    CommitWarpgroupMatrix();
  });
  EXPECT_THAT(reports, ::testing::Each(HasSubstr("ends while its matrix products are under way")));
  EXPECT_THAT(reports, ::testing::SizeIs(100));
}

TEST(WarpgroupMatrixTest, AllFourWarpsTakePart) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 128, .shared_bytes = 1024}, [&] {
    const uint32_t a[4] = {};
    float d[4];
    if (Warp() == 2) return;
    FenceWarpgroupMatrix(d);
    line = __LINE__ + 1;
    MultiplyWarpgroupMatrix(d, a, MatrixDescriptor(SharedMemory()));
  });
  EXPECT_THAT(reports, OnlyReports(kFile, line, "96 of 128 arrived"));
}

TEST(WarpgroupMatrixTest, AllFourWarpsAskForTheSameProduct) {
  const auto reports = ReportsOf({.threads = 128, .shared_bytes = 2048}, [&] {
    const uint32_t a[4] = {};
    float d[4];
    FenceWarpgroupMatrix(d);
    MultiplyWarpgroupMatrix(d, a, MatrixDescriptor(SharedMemory() + Warp() / 2 * 1024));
  });
  EXPECT_THAT(reports, ::testing::ElementsAre(HasSubstr("ask for different products")));
}

TEST(WarpgroupMatrixTest, AMatrixBeyondSharedMemoryIsAFault) {
  const auto reports = ReportsOf({.threads = 128, .shared_bytes = 1024}, [&] {
    const uint32_t a[4] = {};
    float d[8];
    FenceWarpgroupMatrix(d);
    MultiplyWarpgroupMatrix(d, a, MatrixDescriptor(SharedMemory()));
    CommitWarpgroupMatrix();
    WaitWarpgroupMatrix<0>(d);
  });
  EXPECT_THAT(reports, ::testing::ElementsAre(HasSubstr("goes beyond the block's shared memory")));
}

}  // namespace
}  // namespace marcoro::cuda
