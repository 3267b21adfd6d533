#include "tests/worker/model/golden_logits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "tests/kernels/cuda/device_backends.h"

namespace marcoro {
namespace {

constexpr size_t kEmulatedTokens = 23;  // of the prompt that an emulated device computes

}  // namespace

bool RunsAllPrompts(const std::string& checkpoint, const std::string& backend) {
  if (backend != "cuda" || !DeviceIsEmulated()) return true;
  return checkpoint == "tiny" && DeviceRunsModels();
}

std::vector<std::vector<float>> ReadMatrix(const SafetensorsFile& file, const std::string& name) {
  std::vector<std::vector<float>> rows;
  for (const SafetensorsEntry& entry : file.entries()) {
    if (entry.info.name != name) continue;
    const uint64_t row_bytes = entry.info.columns() * sizeof(float);
    for (int64_t row = 0; row < entry.info.rows(); ++row) {
      rows.emplace_back(entry.info.columns());
      EXPECT_TRUE(file.Read(entry, row * row_bytes, row_bytes, rows.back().data()).ok());
    }
  }
  return rows;
}

double Divergence(const std::vector<float>& reference, const std::vector<float>& ours) {
  const auto log_sum = [](const std::vector<float>& logits) {
    double max = -INFINITY;
    for (const float x : logits) max = std::max(max, static_cast<double>(x));
    double sum = 0;
    for (const float x : logits) sum += std::exp(x - max);
    return max + std::log(sum);
  };
  const double reference_sum = log_sum(reference);
  const double our_sum = log_sum(ours);
  double divergence = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double p = std::exp(reference[i] - reference_sum);
    divergence += p * ((reference[i] - reference_sum) - (ours[i] - our_sum));
  }
  return divergence;
}

std::vector<GoldenPrompt> ReadGolden(const std::string& checkpoint, const std::string& weights,
                                     const std::string& backend) {
  const std::string directory = std::string(MARCORO_TEST_DATA) + "/" + checkpoint;
  std::ifstream file(directory + "/golden.json");
  const nlohmann::json json = nlohmann::json::parse(file);
  auto tensors = SafetensorsFile::Open(directory + "/golden.safetensors");
  EXPECT_TRUE(tensors.ok()) << tensors.status();
  std::vector<GoldenPrompt> prompts;
  for (const auto& entry : json["prompts"]) {
    GoldenPrompt prompt;
    prompt.text = entry["text"];
    prompt.ids = entry["ids"].get<std::vector<TokenId>>();
    prompt.first = entry["positions"][0];
    prompt.last = entry["positions"][1];
    const auto& greedy = entry["greedy" + weights];
    prompt.greedy = greedy["ids"].get<std::vector<TokenId>>();
    prompt.gaps = greedy["gaps"].get<std::vector<double>>();
    prompt.logprobs = greedy["logprobs"].get<std::vector<double>>();
    const std::string name = "logits" + weights + "." + std::to_string(prompts.size());
    prompt.logits = ReadMatrix(**tensors, name);
    prompts.push_back(std::move(prompt));
  }
  if (!RunsAllPrompts(checkpoint, backend)) {
    prompts.erase(std::remove_if(prompts.begin(), prompts.end(),
                                 [](const GoldenPrompt& prompt) {
                                   return prompt.ids.size() != kEmulatedTokens;
                                 }),
                  prompts.end());
  }
  EXPECT_FALSE(prompts.empty());
  return prompts;
}

}  // namespace marcoro
