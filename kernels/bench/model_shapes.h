// The shapes that are measured: those of a model, by default of a Mistral of 7B.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace marcoro {

struct NamedWeight {
  const char* name;
  WeightShape shape;
};

struct ModelShapes {
  int64_t hidden = 4096;
  int64_t feed_forward = 14336;
  int64_t vocabulary = 32000;
  int32_t context = 4096;
  AttentionShape attention = {.heads = 32, .kv_heads = 8, .head_dim = 128, .window = 0};

  constexpr int64_t qkv_columns() const {
    return int64_t{attention.heads + 2 * attention.kv_heads} * attention.head_dim;
  }
  constexpr int64_t query_columns() const { return int64_t{attention.heads} * attention.head_dim; }

  // The weights that are multiplied with, in the order of a layer.
  std::vector<NamedWeight> Weights() const {
    return {{"qkv", {DType::kF8E4M3, qkv_columns(), hidden, 1}},
            {"o", {DType::kF8E4M3, hidden, query_columns(), 8}},
            {"gate_up", {DType::kF8E4M3, 2 * feed_forward, hidden, 1}},
            {"down", {DType::kF8E4M3, hidden, feed_forward, 8}},
            {"lm_head", {DType::kBF16, vocabulary, hidden, 1}}};
  }
};

}  // namespace marcoro
