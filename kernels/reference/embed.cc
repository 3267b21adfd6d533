#include "kernels/reference/element.h"
#include "kernels/reference/ops.h"

namespace marcoro::reference {

void Embed(absl::Span<const int32_t> ids, const Tensor& table, const Tensor& out) {
  for (int64_t t = 0; t < out.rows; ++t) {
    const std::vector<float> row = RowToFloats(table, ids[t]);
    for (int64_t i = 0; i < out.columns; ++i) out.Row<float>(t)[i] = row[i];
  }
}

}  // namespace marcoro::reference
