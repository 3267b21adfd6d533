#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace marcoro::cuda {
namespace {

Matrix RunOp(const std::vector<int32_t>& ids, const Matrix& table, int64_t out_padding) {
  const auto tokens = static_cast<int>(ids.size());
  const DeviceArray<int32_t> device_ids{absl::MakeConstSpan(ids)};
  const DeviceMatrix device_table(table);
  const DeviceMatrix out(Matrix(DType::kF32, tokens, table.columns(), out_padding));
  DeviceStep step;
  step.rows = tokens;
  step.ids = device_ids.data();
  Embed(TestStream(), step, device_table.view(), out.view());
  return out.ToHost();
}

TEST(CudaEmbedTest, CopiesTheRowsOfTheIds) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int64_t columns : {1, 3, 4, 7, 1023, 1024, 1029, 4096}) {
      for (const int64_t padding : {0, 3, 4}) {
        SCOPED_TRACE(::testing::Message() << columns << " columns, padding " << padding);
        const Matrix table = Matrix(dtype, 50, columns, padding).FillNormal(1);
        const std::vector<int32_t> ids = {49, 0, 7, 7, 31};
        const Matrix out = RunOp(ids, table, padding);
        Matrix expected(DType::kF32, 5, columns);
        for (int64_t t = 0; t < 5; ++t) {
          for (int64_t i = 0; i < columns; ++i) expected.Set(t, i, table.At(ids[t], i));
        }
        EXPECT_TRUE(BitwiseEqual(expected, out));
        EXPECT_TRUE(out.PaddingIsIntact());
      }
    }
  }
}

}  // namespace
}  // namespace marcoro::cuda
