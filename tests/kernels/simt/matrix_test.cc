// Matrix fragments of a warp, laid out by hand from the figures of the PTX ISA.
#include "kernels/cuda/device/matrix.h"

#include <array>
#include <cmath>
#include <utility>

#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/device/shared_memory.h"
#include "kernels/cuda/device/thread.h"
#include "tests/kernels/simt/reports.h"

namespace marcoro::cuda {
namespace {

using simt::OnlyReports;
using simt::ReportsOf;

// Small whole numbers, which products and sums keep exactly; different everywhere.
float A(int row, int column) { return static_cast<float>((row * 7 + column * 3) % 19 - 9); }
float B(int row, int column) { return static_cast<float>((row * 5 + column * 11) % 17 - 8); }

TEST(MatrixTest, FragmentsMultiplyLikeTheMatricesTheyAreOf) {
  std::array<std::array<float, 8>, 16> product = {};
  simt::Launch({.threads = 32}, [&] {
    const int g = Lane() / 4;
    const int i = Lane() % 4;
    const uint32_t a[4] = {PackBf16(A(g, 2 * i), A(g, 2 * i + 1)),
                           PackBf16(A(g + 8, 2 * i), A(g + 8, 2 * i + 1)),
                           PackBf16(A(g, 2 * i + 8), A(g, 2 * i + 9)),
                           PackBf16(A(g + 8, 2 * i + 8), A(g + 8, 2 * i + 9))};
    const uint32_t b[2] = {PackBf16(B(2 * i, g), B(2 * i + 1, g)),
                           PackBf16(B(2 * i + 8, g), B(2 * i + 9, g))};
    float c[4] = {1000, 2000, 3000, 4000};
    MultiplyMatrix(c, a, b);
    product[static_cast<size_t>(g)][static_cast<size_t>(2 * i)] = c[0] - 1000;
    product[static_cast<size_t>(g)][static_cast<size_t>(2 * i + 1)] = c[1] - 2000;
    product[static_cast<size_t>(g + 8)][static_cast<size_t>(2 * i)] = c[2] - 3000;
    product[static_cast<size_t>(g + 8)][static_cast<size_t>(2 * i + 1)] = c[3] - 4000;
  });
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += A(row, k) * B(k, column);
      EXPECT_EQ(product[static_cast<size_t>(row)][static_cast<size_t>(column)], sum)
          << row << ", " << column;
    }
  }
}

// Fills four 8 x 8 matrices, one behind the other, with matrix * 64 + row * 8 + column.
SharedArray<uint16_t> FourMatrices() {
  const SharedArray<uint16_t> matrices(0, 256);
  for (int i = Lane(); i < 256; i += kWarpThreads) matrices.Store(i, static_cast<uint16_t>(i));
  return matrices;
}

TEST(MatrixTest, LoadMatricesGivesEachLaneTwoElementsOfARow) {
  simt::Launch({.threads = 32, .shared_bytes = 512}, [] {
    const auto matrices = FourMatrices();
    SyncWarp();
    uint32_t r[4];
    LoadMatrices(r, matrices.Address(Lane() * 8));
    for (uint32_t m = 0; m < 4; ++m) {
      const auto first = m * 64 + static_cast<uint32_t>(Lane() / 4 * 8 + Lane() % 4 * 2);
      EXPECT_EQ(r[m], first | (first + 1) << 16);
    }
  });
}

TEST(MatrixTest, LoadMatricesOfTwoTakesTheAddressesOfHalfAWarp) {
  simt::Launch({.threads = 32, .shared_bytes = 512}, [] {
    const auto matrices = FourMatrices();
    SyncWarp();
    uint32_t r[2];
    LoadMatrices(r, matrices.Address(Lane() % 16 * 8));
    for (uint32_t m = 0; m < 2; ++m) {
      const auto first = m * 64 + static_cast<uint32_t>(Lane() / 4 * 8 + Lane() % 4 * 2);
      EXPECT_EQ(r[m], first | (first + 1) << 16);
    }
  });
}

// Codes of powers of two: 2^(e - 7) has the code 8 e.
TEST(MatrixTest, MultipliesCodesByTheDocumentedFragments) {
  const auto a_exponent = [](int row, int k) { return 1 + (row * 3 + k * 5) % 14; };
  const auto b_exponent = [](int k, int column) { return 1 + (k * 7 + column * 2) % 14; };
  simt::Launch({.threads = 32}, [&] {
    const int group = Lane() / 4;
    const int first = Lane() % 4 * 4;
    uint32_t a[4] = {};
    uint32_t b[2] = {};
    for (int byte = 0; byte < 4; ++byte) {
      const auto code = [&](int exponent) {
        return static_cast<uint32_t>(8 * exponent) << 8 * byte;
      };
      const int k = first + byte;
      a[0] |= code(a_exponent(group, k));
      a[1] |= code(a_exponent(group + 8, k));
      a[2] |= code(a_exponent(group, k + 16));
      a[3] |= code(a_exponent(group + 8, k + 16));
      b[0] |= code(b_exponent(k, group));
      b[1] |= code(b_exponent(k + 16, group));
    }
    float c[4] = {1, 2, 3, 4};
    MultiplyCodeMatrix(c, a, b);
    for (int i = 0; i < 4; ++i) {
      const int row = group + i / 2 * 8;
      const int column = Lane() % 4 * 2 + i % 2;
      double sum = i + 1;
      for (int k = 0; k < 32; ++k) {
        sum += std::ldexp(1.0, a_exponent(row, k) + b_exponent(k, column) - 14);
      }
      EXPECT_EQ(c[i], static_cast<float>(sum)) << row << ", " << column;
    }
  });
}

TEST(MatrixTest, CodesHaveSignsSubnormalsAndNan) {
  for (const auto& [code, value] : {std::pair<uint32_t, float>{0xb8, -1.0f},
                                    {0x01, 0.001953125f},
                                    {0x7e, 448.0f},
                                    {0x87, -0.013671875f}}) {
    simt::Launch({.threads = 32}, [&] {
      const uint32_t a[4] = {code, code, 0, 0};  // one of each four columns
      const uint32_t b[2] = {0x38, 0};
      float c[4] = {};
      MultiplyCodeMatrix(c, a, b);
      EXPECT_EQ(c[0], 4 * value);
      EXPECT_EQ(c[3], 4 * value);
      const uint32_t nan[4] = {0x7f, 0, 0, 0};
      MultiplyCodeMatrix(c, nan, b);
      EXPECT_TRUE(std::isnan(c[0]));
      EXPECT_FALSE(std::isnan(c[2]));
    });
  }
}

TEST(MatrixTest, LoadMatricesTransposedGivesEachLaneTwoElementsOfAColumn) {
  simt::Launch({.threads = 32, .shared_bytes = 512}, [] {
    const auto matrices = FourMatrices();
    SyncWarp();
    uint32_t r[4];
    LoadMatricesTransposed(r, matrices.Address(Lane() * 8));
    for (uint32_t m = 0; m < 4; ++m) {
      const auto first = m * 64 + static_cast<uint32_t>(Lane() % 4 * 2 * 8 + Lane() / 4);
      EXPECT_EQ(r[m], first | (first + 8) << 16);
    }
  });
}

TEST(MatrixTest, LoadMatricesReadsSharedMemoryLikeAnyLoad) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 512}, [&] {
    const auto matrices = FourMatrices();
    uint32_t r[4];
    line = __LINE__ + 1;
    LoadMatrices(r, matrices.Address(Lane() * 8));
  });
  EXPECT_THAT(reports, ::testing::Contains(::testing::HasSubstr(
                           "matrix_test.cc:" + std::to_string(line) + ": reads byte")));
}

TEST(MatrixTest, RowsAreAlignedTo16Bytes) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 1024}, [&] {
    uint32_t r[4];
    line = __LINE__ + 1;
    LoadMatrices(r, SharedMemory() + Lane() * 16 + 8);
  });
  EXPECT_THAT(reports, OnlyReports("matrix_test.cc", line, "not aligned to 16 bytes"));
}

TEST(MatrixTest, ARowOutsideOfSharedMemoryIsAFault) {
  int line = 0;
  const auto reports = ReportsOf({.threads = 32, .shared_bytes = 496}, [&] {
    uint32_t r[4];
    line = __LINE__ + 1;
    LoadMatrices(r, SharedMemory() + Lane() * 16);
  });
  EXPECT_THAT(reports, OnlyReports("matrix_test.cc", line, "not an address of shared memory"));
}

}  // namespace
}  // namespace marcoro::cuda
