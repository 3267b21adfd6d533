// The scales of a pre-quantized checkpoint's FP8 weights, checked against the weights.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/quantization_scheme.h"
#include "worker/weights/tensor_source.h"

namespace marcoro {

// safetensors' name of E4M3FN.
inline constexpr char kE4M3Name[] = "F8_E4M3";

struct WeightScales {
  ScaleLayout layout = ScaleLayout::kTensor;
  int64_t block_rows = 0;  // of kBlock
  int64_t block_columns = 0;
  std::vector<float> values;  // (1), (rows) or (row blocks, column blocks); finite and > 0

  bool one_per_row() const { return layout != ScaleLayout::kBlock; }
  // Scale of a whole row; not for kBlock.
  float OfRow(int64_t row) const {
    return values[layout == ScaleLayout::kTensor ? 0 : static_cast<size_t>(row)];
  }
};

// By name of the weight.
using WeightScalesMap = std::map<std::string, WeightScales, std::less<>>;

// Reads the scales of every tensor "….weight" of type F8_E4M3. INVALID_ARGUMENT, naming file and
// tensor, for a scale that is missing, of the wrong shape or type, not finite, not above zero or so
// large that a product overflows; for an FP8 weight that the scheme calls unquantized; for a scale
// beside a weight that is not FP8; and if there is no FP8 weight at all.
absl::StatusOr<WeightScalesMap> ReadWeightScales(TensorSource& stored,
                                                 const QuantizationScheme& scheme);

// numbers (count, columns) = codes (count, columns) of rows [first_row, first_row + count) times
// their scales: one float32 product each, NaN for the codes that are NaN.
void Dequantize(const uint8_t* codes, int64_t first_row, int64_t count, int64_t columns,
                const WeightScales& scales, float* numbers);

}  // namespace marcoro
