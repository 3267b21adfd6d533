#include "worker/weights/tensor_source.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"

namespace marcoro {

int64_t TensorInfo::columns() const {
  int64_t columns = 1;
  for (size_t i = shape.size() < 2 ? 0 : 1; i < shape.size(); ++i) columns *= shape[i];
  return columns;
}

absl::Status TensorSource::ReadStored(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                      void* out) {
  MARCORO_CHECK(StoredDType(tensor).has_value());
  return absl::UnimplementedError(
      absl::StrCat(tensor.origin, ": tensor ", tensor.name, ": its rows cannot be read as stored"));
}

absl::Status TensorSource::ReadCodes(const TensorInfo& tensor, int64_t first_row, int64_t count,
                                     uint8_t* codes, float* scales) {
  MARCORO_CHECK(FormOf(tensor) == Fp8Form::kStored);
  return absl::UnimplementedError(
      absl::StrCat(tensor.origin, ": tensor ", tensor.name, ": its codes cannot be read"));
}

std::string FormatShape(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace marcoro
