#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace marcoro::cuda {
namespace {

TEST(CudaGatherRowsTest, CopiesTheGivenRows) {
  for (const int64_t columns : {1, 7, 8, 9, 1023, 1024, 1025, 4096}) {
    for (const int64_t padding : {0, 3, 8}) {
      SCOPED_TRACE(::testing::Message() << columns << " columns, padding " << padding);
      const Matrix from = Matrix(DType::kBF16, 20, columns, padding).FillNormal(1);
      const std::vector<int32_t> rows = {19, 0, 5, 5};
      const DeviceArray<int32_t> device_rows{absl::MakeConstSpan(rows)};
      const DeviceMatrix device_from(from);
      const DeviceMatrix to(Matrix(DType::kBF16, 4, columns, padding));
      GatherRows(TestStream(), device_from.view(), device_rows.data(), to.view());
      const Matrix out = to.ToHost();
      Matrix expected(DType::kBF16, 4, columns);
      for (int64_t r = 0; r < 4; ++r) expected.CopyRow(r, from, rows[r]);
      EXPECT_TRUE(BitwiseEqual(expected, out));
      EXPECT_TRUE(out.PaddingIsIntact());
    }
  }
}

}  // namespace
}  // namespace marcoro::cuda
