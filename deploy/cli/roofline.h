// How fast a model can be at best on a machine, to compare a server with.
//
//   decode step:  max(weight bytes / read bandwidth, batch * FLOP per token / BF16 peak)
//   prefill:      FLOP of the prompt / BF16 peak
//
// Weight bytes are what a step reads once: linear layers (1 byte a weight in FP8, 2 in BF16) and
// lm_head (BF16); not the embedding table, of which a step reads a row for each token. 7.24 GB for
// the 7B shape in FP8. FLOP per token are 2 for each of those weights. A prompt of n tokens takes
// 2 n for each linear weight, 4 * layers * heads * head_dim for each of the n (n + 1) / 2 pairs of
// attention, and 2 for each weight of lm_head, once.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/bench/limits.h"
#include "worker/model/config.h"

namespace marcoro {

struct ModelCost {
  double weight_bytes = 0;       // read by each step
  double linear_parameters = 0;  // of all layers
  double head_parameters = 0;    // lm_head
  double flops_per_pair = 0;     // attention of one token to one token, all layers

  double DecodeFlops(double batch) const;
  double PrefillFlops(double prompt_tokens) const;
};

// `quantization` is how linear weights are held: "fp8", "bf16" or "f32"; INVALID_ARGUMENT for
// others.
absl::StatusOr<ModelCost> CostOf(const ModelConfig& config, absl::string_view quantization);

// Shortest time of a decode step of `batch` sequences.
double DecodeSeconds(const ModelCost& cost, const MachineLimits& limits, double batch);

}  // namespace marcoro
