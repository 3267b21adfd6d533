// Sampling defaults that come with a checkpoint.
#pragma once

#include <cstdint>
#include <optional>

namespace marcoro {

// Of generation_config.json. Its max_length and max_new_tokens are ignored: they limit a library's
// example calls, not the model.
struct GenerationDefaults {
  std::optional<float> temperature;  // 0 where do_sample is false
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> typical_p;
  std::optional<float> repetition_penalty;
};

}  // namespace marcoro
