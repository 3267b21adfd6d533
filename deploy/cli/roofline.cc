#include "deploy/cli/roofline.h"

#include "absl/strings/str_cat.h"

namespace marcoro {

double ModelCost::DecodeFlops(double batch) const {
  return 2 * batch * (linear_parameters + head_parameters);
}

double ModelCost::PrefillFlops(double prompt_tokens) const {
  const double pairs = prompt_tokens * (prompt_tokens + 1) / 2;
  return 2 * prompt_tokens * linear_parameters + flops_per_pair * pairs + 2 * head_parameters;
}

absl::StatusOr<ModelCost> CostOf(const ModelConfig& config, absl::string_view quantization) {
  double linear_bytes = 0;
  if (quantization == "fp8") {
    linear_bytes = 1;
  } else if (quantization == "bf16") {
    linear_bytes = 2;
  } else if (quantization == "f32") {
    linear_bytes = 4;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("unknown quantization '", quantization, "'"));
  }
  const double hidden = config.hidden_size;
  const double query = double{1} * config.heads * config.head_dim;
  const double key = double{1} * config.kv_heads * config.head_dim;
  const double layer = hidden * (2 * query + 2 * key) + 3 * hidden * config.ffn_size;
  ModelCost cost;
  cost.linear_parameters = config.layers * layer;
  cost.head_parameters = hidden * config.vocabulary_size;
  cost.weight_bytes = linear_bytes * cost.linear_parameters + 2 * cost.head_parameters;
  cost.flops_per_pair = 4 * query * config.layers;
  return cost;
}

double DecodeSeconds(const ModelCost& cost, const MachineLimits& limits, double batch) {
  return limits.Seconds(cost.weight_bytes, cost.DecodeFlops(batch));
}

}  // namespace marcoro
