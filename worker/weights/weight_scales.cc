#include "worker/weights/weight_scales.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "worker/weights/quantize.h"
#include "worker/weights/row_kernels.h"

namespace marcoro {
namespace {

constexpr char kWeightSuffix[] = ".weight";

absl::Status TensorError(const TensorInfo& tensor, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat(tensor.origin, ": tensor ", tensor.name, ": ", what));
}

int64_t CeilDivide(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Whether the scales' tensor has one of the shapes of the layout.
bool ShapeFits(const TensorInfo& tensor, const TensorInfo& weight, const QuantizationGroup& group) {
  const std::vector<int64_t>& shape = tensor.shape;
  const int64_t rows = weight.rows();
  switch (group.layout) {
    case ScaleLayout::kTensor:
      return shape.size() <= 2 && std::all_of(shape.begin(), shape.end(),
                                              [](int64_t dimension) { return dimension == 1; });
    case ScaleLayout::kRow:
      return shape == std::vector<int64_t>{rows} || shape == std::vector<int64_t>{rows, 1};
    case ScaleLayout::kBlock:
      return shape == std::vector<int64_t>{CeilDivide(rows, group.block_rows),
                                           CeilDivide(weight.columns(), group.block_columns)};
  }
  return false;
}

std::string ExpectedShape(const TensorInfo& weight, const QuantizationGroup& group) {
  switch (group.layout) {
    case ScaleLayout::kTensor:
      return "[] or [1]";
    case ScaleLayout::kRow:
      return absl::StrCat("[", weight.rows(), ", 1] or [", weight.rows(), "]");
    case ScaleLayout::kBlock:
      return FormatShape({CeilDivide(weight.rows(), group.block_rows),
                          CeilDivide(weight.columns(), group.block_columns)});
  }
  return "";
}

absl::StatusOr<WeightScales> ReadScales(TensorSource& stored, const TensorInfo& weight,
                                        const TensorInfo& tensor, const QuantizationGroup& group) {
  if (!ShapeFits(tensor, weight, group)) {
    return TensorError(
        tensor, absl::StrCat("has shape ", FormatShape(tensor.shape), ", the scales of a weight ",
                             FormatShape(weight.shape), " need ", ExpectedShape(weight, group)));
  }
  WeightScales scales;
  scales.layout = group.layout;
  scales.block_rows = group.block_rows;
  scales.block_columns = group.block_columns;
  scales.values.resize(static_cast<size_t>(tensor.rows() * tensor.columns()));
  absl::Status status = stored.ReadRows(tensor, 0, tensor.rows(), scales.values.data());
  if (!status.ok()) return status;
  constexpr float kLargest = std::numeric_limits<float>::max() / kE4M3Max;
  for (size_t i = 0; i < scales.values.size(); ++i) {
    const float scale = scales.values[i];
    if (scale > 0 && scale <= kLargest) continue;
    return TensorError(tensor,
                       absl::StrCat("scale ", i, " is ", scale,
                                    ", it must be finite, above zero and at most ", kLargest));
  }
  return scales;
}

// The module of a tensor "….weight"; empty for another tensor.
std::string ModuleOf(const std::string& name) {
  absl::string_view module = name;
  return absl::ConsumeSuffix(&module, kWeightSuffix) ? std::string(module) : "";
}

}  // namespace

absl::StatusOr<WeightScalesMap> ReadWeightScales(TensorSource& stored,
                                                 const QuantizationScheme& scheme) {
  WeightScalesMap result;
  for (const TensorInfo* weight : stored.Tensors()) {
    const std::string module = ModuleOf(weight->name);
    if (module.empty()) continue;
    const TensorInfo* tensor = stored.Find(scheme.ScaleName(module));
    if (weight->dtype != kE4M3Name) {
      if (tensor == nullptr) continue;
      return TensorError(*tensor, absl::StrCat("belongs to a weight of type ", weight->dtype,
                                               ", not ", kE4M3Name));
    }
    const QuantizationGroup* group = scheme.GroupOf(module);
    if (group == nullptr || weight->shape.size() != 2) {
      return TensorError(*weight, absl::StrCat("is of type ", kE4M3Name,
                                               ", but the quantization config says that it is not "
                                               "quantized"));
    }
    if (tensor == nullptr) {
      return TensorError(
          *weight, absl::StrCat("its scales, tensor ", scheme.ScaleName(module), ", are missing"));
    }
    absl::StatusOr<WeightScales> scales = ReadScales(stored, *weight, *tensor, *group);
    if (!scales.ok()) return scales.status();
    result.emplace(weight->name, *std::move(scales));
  }
  if (result.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(stored.Description(), ": the quantization config says ", scheme.Description(),
                     ", but no weight is of type ", kE4M3Name));
  }
  return result;
}

void Dequantize(const uint8_t* codes, int64_t first_row, int64_t count, int64_t columns,
                const WeightScales& scales, float* numbers) {
  const RowKernels& kernels = GetRowKernels();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = first_row + i;
    const uint8_t* in = codes + i * columns;
    float* out = numbers + i * columns;
    if (scales.one_per_row()) {
      kernels.from_e4m3(in, columns, scales.OfRow(row), out);
      continue;
    }
    const int64_t column_blocks = CeilDivide(columns, scales.block_columns);
    const float* row_scales = scales.values.data() + row / scales.block_rows * column_blocks;
    for (int64_t block = 0; block < column_blocks; ++block) {
      const int64_t first = block * scales.block_columns;
      const int64_t width = std::min(scales.block_columns, columns - first);
      kernels.from_e4m3(in + first, width, row_scales[block], out + first);
    }
  }
}

}  // namespace marcoro
