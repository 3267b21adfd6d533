// What a pre-quantized checkpoint says about its FP8 weights: config.json's quantization_config, or
// hf_quant_config.json. Every format stores a linear weight as E4M3FN codes (out, in) with scales
// beside it that multiply; the formats differ in how many scales there are and what they are named.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace marcoro {

enum class ScaleLayout : uint8_t {
  kTensor,  // one scale for the whole weight: shape [], [1] or [1, 1]
  kRow,     // one for each output row ("channel"): [out] or [out, 1]
  kBlock,   // one for each block: [⌈out / block_rows⌉, ⌈in / block_columns⌉]
};

// Modules that are quantized in one way.
struct QuantizationGroup {
  std::vector<std::string> targets;  // as QuantizationScheme::Matches takes them
  ScaleLayout layout = ScaleLayout::kTensor;
  int64_t block_rows = 0;  // of kBlock
  int64_t block_columns = 0;
};

class QuantizationScheme {
 public:
  // Nothing where neither file speaks of quantization. INVALID_ARGUMENT, naming file and key, for
  // what is not one of the formats above (other bit widths, other methods) or no valid JSON.
  // Stored input scales, and the activation scheme that they belong to, make no difference:
  // activations are BF16.
  static absl::StatusOr<std::optional<QuantizationScheme>> Load(const std::string& directory);

  // The same from the texts of the two files (empty: there is none) of `directory`.
  static absl::StatusOr<std::optional<QuantizationScheme>> Parse(const std::string& config_json,
                                                                 const std::string& hf_quant_config,
                                                                 const std::string& directory);

  // Whether an entry of a list of modules means this one: its name, the name of a module that it is
  // in, a pattern with '*', "re:" and an extended regular expression for the name's beginning, or
  // "Linear", which all are.
  static bool Matches(const std::string& entry, std::string_view module);

  // How a module ("model.layers.0.mlp.up_proj") is quantized; null if it is not: it is ignored, or
  // belongs to no group.
  const QuantizationGroup* GroupOf(std::string_view module) const;

  // Name of the scales' tensor of a module.
  std::string ScaleName(std::string_view module) const;

  // One line: "compressed-tensors FP8, a scale per row".
  std::string Description() const;

 private:
  friend class SchemeReader;

  std::string method_;                     // "fp8", "compressed-tensors", "modelopt"
  std::string scale_suffix_;               // ".weight_scale" or ".weight_scale_inv"
  std::vector<QuantizationGroup> groups_;  // the first that matches counts
  std::vector<std::string> ignored_;
};

}  // namespace marcoro
