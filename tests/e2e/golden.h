// What an independent implementation makes of the prompts of a model (tests/data/README.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace marcoro {

struct GoldenGreedy {
  std::vector<uint32_t> ids;
  std::vector<double> gaps;      // between the two best logits
  std::vector<double> logprobs;  // of ids
};

struct GoldenPrompt {
  std::string text;
  std::vector<uint32_t> ids;  // with <s>
  GoldenGreedy greedy;        // with the stored weights
  GoldenGreedy greedy_fp8;    // with quantized ones
};

std::vector<GoldenPrompt> LoadGolden(const std::string& model);

}  // namespace marcoro
