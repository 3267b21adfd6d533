// Logits of an independent implementation, and how far ours are from them.
#pragma once

#include <string>
#include <vector>

#include "worker/scheduler/step_plan.h"
#include "worker/weights/safetensors.h"

namespace marcoro {

// A prompt of golden.json; see tests/data/README.md.
struct GoldenPrompt {
  std::string text;
  std::vector<TokenId> ids;
  int first = 0;  // positions [first, last) have logits
  int last = 0;
  std::vector<TokenId> greedy;
  std::vector<double> gaps;
  std::vector<double> logprobs;
  std::vector<std::vector<float>> logits;
};

// The prompts of a checkpoint of tests/data. weights is "" for the stored weights or "_fp8" for the
// row-quantized ones. An emulated device takes a thousand times as long as others: for it there is
// one prompt, longer than the window of "window", and all of them only of "tiny", but
// with AddressSanitizer not even there.
std::vector<GoldenPrompt> ReadGolden(const std::string& checkpoint, const std::string& weights,
                                     const std::string& backend = "reference");

// Whether those are all prompts of the checkpoint, which the bounds of the means are for.
bool RunsAllPrompts(const std::string& checkpoint, const std::string& backend);

// A two-dimensional float32 tensor of a file.
std::vector<std::vector<float>> ReadMatrix(const SafetensorsFile& file, const std::string& name);

// KL(reference ‖ ours) of two rows of logits, in nats.
double Divergence(const std::vector<float>& reference, const std::vector<float>& ours);

}  // namespace marcoro
