// The reference product against double loops and arithmetic by hand; the other backends are
// compared with it.

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/element.h"
#include "tests/kernels/backends.h"
#include "tests/kernels/compare.h"

namespace marcoro {
namespace {

TEST(E4M3Test, ValuesByHand) {
  using reference::E4M3ToFloat;
  EXPECT_EQ(E4M3ToFloat(0x00), 0);
  EXPECT_EQ(E4M3ToFloat(0x01), std::ldexp(1.0f, -9));  // the smallest subnormal
  EXPECT_EQ(E4M3ToFloat(0x07), std::ldexp(7.0f, -9));  // the largest
  EXPECT_EQ(E4M3ToFloat(0x08), std::ldexp(1.0f, -6));  // the smallest normal
  EXPECT_EQ(E4M3ToFloat(0x38), 1);
  EXPECT_EQ(E4M3ToFloat(0x3c), 1.5f);
  EXPECT_EQ(E4M3ToFloat(0xb8), -1);
  EXPECT_EQ(E4M3ToFloat(0x7e), 448);
  EXPECT_EQ(E4M3ToFloat(0xfe), -448);
  EXPECT_TRUE(std::isnan(E4M3ToFloat(0x7f)));
  EXPECT_TRUE(std::isnan(E4M3ToFloat(0xff)));
  EXPECT_TRUE(std::signbit(E4M3ToFloat(0x80)));
}

struct Weight {
  Weight(const WeightShape& shape, Backend& backend, const void* source,
         std::vector<float> scales_in = {})
      : bytes(backend.WeightBytes(shape)), scales(std::move(scales_in)) {
    packed = {shape, bytes.data(), scales.empty() ? nullptr : scales.data()};
    for (int64_t row = 0; row < shape.rows; row += 64) {
      const int64_t count = std::min<int64_t>(64, shape.rows - row);
      backend.PackWeight(packed, row, count,
                         static_cast<const char*>(source) +
                             static_cast<size_t>(row * shape.columns) * SizeOf(shape.dtype));
    }
  }
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  PackedWeight packed;
};

TEST(ReferenceMatmulTest, SegmentsAreAddedAsATree) {
  const auto backend = MakeBackend("reference", 1, DType::kF32);
  // One column a segment. As a tree 1e8 + 1 and -1e8 + 1 lose their ones; from left to right the
  // last one would survive.
  const std::vector<float> row = {1e8f, 1, -1e8f, 1};
  Matrix x(DType::kF32, 1, 4);
  x.FillRow(0, 1);
  const Matrix out(DType::kF32, 1, 1);
  const Weight tree({DType::kF32, 1, 4, 4}, *backend, row.data());
  backend->Matmul(x.view(), tree.packed, out.view());
  EXPECT_EQ(out.At(0, 0), 0);
  const Weight sequence({DType::kF32, 1, 4, 1}, *backend, row.data());
  backend->Matmul(x.view(), sequence.packed, out.view());
  EXPECT_EQ(out.At(0, 0), 1);
}

TEST(ReferenceMatmulTest, TheScaleMultipliesEachSegmentBeforeTheTree) {
  const auto backend = MakeBackend("reference", 1, DType::kF32);
  // 448 and -448 a segment: scaled first they are infinities of both signs, added first they would
  // be 0.
  const std::vector<uint8_t> row = {0x7e, 0xfe};
  Matrix x(DType::kF32, 1, 2);
  x.FillRow(0, 1);
  const Matrix out(DType::kF32, 1, 1);
  const Weight weight({DType::kF8E4M3, 1, 2, 2}, *backend, row.data(), {1e37f});
  backend->Matmul(x.view(), weight.packed, out.view());
  EXPECT_TRUE(std::isnan(out.At(0, 0)));
}

TEST(ReferenceMatmulTest, IsTheProductInDoubleWithinRounding) {
  for (const DType activations : {DType::kBF16, DType::kF32}) {
    const auto backend = MakeBackend("reference", 1, activations);
    for (const DType dtype : {DType::kF8E4M3, DType::kBF16, DType::kF32}) {
      constexpr int64_t kRows = 70, kColumns = 96, kTokens = 3;
      const Matrix x = Matrix(activations, kTokens, kColumns, 2).FillNormal(1);
      const Matrix dense =
          Matrix(dtype == DType::kF32 ? DType::kF32 : DType::kBF16, kRows, kColumns).FillNormal(2);
      std::vector<uint8_t> codes(static_cast<size_t>(kRows * kColumns));
      for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 31 % 127);
      const bool fp8 = dtype == DType::kF8E4M3;
      const void* source = fp8 ? codes.data() : dense.view().data;
      const std::vector<float> scales =
          fp8 ? std::vector<float>(kRows, 0.01f) : std::vector<float>();
      const Weight weight({dtype, kRows, kColumns, 8}, *backend, source, scales);
      const Matrix out(DType::kF32, kTokens, kRows, 1);
      backend->Matmul(x.view(), weight.packed, out.view());

      Matrix expected(DType::kF32, kTokens, kRows);
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t n = 0; n < kRows; ++n) {
          double sum = 0;
          for (int64_t k = 0; k < kColumns; ++k) {
            const double w =
                fp8 ? reference::E4M3ToFloat(codes[static_cast<size_t>(n * kColumns + k)]) * 0.01
                    : dense.At(n, k);
            sum += x.At(t, k) * w;
          }
          expected.Set(t, n, static_cast<float>(sum));
        }
      }
      EXPECT_TRUE(Near(expected, out, 1e-5f, 3e-5f));
      EXPECT_TRUE(out.PaddingIsIntact());
    }
  }
}

}  // namespace
}  // namespace marcoro
