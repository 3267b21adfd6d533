// Input: a config.json, a zero byte and a hf_quant_config.json.
#include "tests/fuzz/input.h"
#include "worker/model/config.h"
#include "worker/weights/quantization_scheme.h"

namespace marcoro {
namespace {

void CheckConfig(const ModelConfig& config) {
  MARCORO_CHECK(config.hidden_size > 0 && config.layers > 0 && config.vocabulary_size > 0);
  MARCORO_CHECK(config.kv_heads > 0 && config.heads % config.kv_heads == 0);
  MARCORO_CHECK(config.head_dim > 0 && config.head_dim % 2 == 0);
  MARCORO_CHECK(config.ffn_size % config.reduction_segments() == 0);
  MARCORO_CHECK(config.max_positions > 0 && config.sliding_window >= 0);
  MARCORO_CHECK(config.rope_theta > 0 && config.rms_norm_epsilon > 0);
  MARCORO_CHECK(config.parameter_count() > 0);
}

}  // namespace

void FuzzOne(absl::string_view input) {
  const std::vector<std::string> files = Parts(input, 2);
  const auto config = ParseModelConfig(files[0], "config.json");
  if (config.ok()) CheckConfig(*config);
  const auto scheme = QuantizationScheme::Parse(files[0], files[1], "folder");
  if (!scheme.ok() || !scheme->has_value()) return;
  MARCORO_CHECK(!(*scheme)->Description().empty());
  for (const char* module : {"model.layers.0.mlp.up_proj", "lm_head", ""}) {
    const QuantizationGroup* group = (*scheme)->GroupOf(module);
    if (group == nullptr || group->layout != ScaleLayout::kBlock) continue;
    MARCORO_CHECK(group->block_rows > 0 && group->block_columns > 0);
  }
}

}  // namespace marcoro
