// Whole models against an independent implementation: the bounds of tests/data/README.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/worker/model/test_model.h"
#include "worker/weights/safetensors.h"

namespace marcoro {
namespace {

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

// A two-dimensional float32 tensor.
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

// weights is "" for the stored weights or "_fp8" for the row-quantized ones.
std::vector<GoldenPrompt> ReadGolden(const std::string& checkpoint, const std::string& weights) {
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
  return prompts;
}

// KL(reference ‖ ours) of two rows of logits, in nats.
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

TokenId Best(const std::vector<float>& logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

struct Case {
  std::string checkpoint;
  bool quantized;
};

std::string Name(const Case& value) {
  return value.checkpoint + (value.quantized ? "_fp8" : "_stored");
}

class GoldenTest : public testing::TestWithParam<Case> {
 protected:
  std::vector<GoldenPrompt> Prompts() const {
    return ReadGolden(GetParam().checkpoint, GetParam().quantized ? "_fp8" : "");
  }
};

TEST_P(GoldenTest, Float32ReferenceGivesTheLogitsWithin2e3) {
  TestModel model({.checkpoint = GetParam().checkpoint,
                   .backend = "reference",
                   .activations = DType::kF32,
                   .linear = GetParam().quantized ? DType::kF8E4M3 : DType::kF32});
  for (const GoldenPrompt& prompt : Prompts()) {
    model.Restart();
    const auto logits = model.Step(prompt.ids);
    ASSERT_EQ(prompt.logits.size(), prompt.last - prompt.first);
    for (int position = prompt.first; position < prompt.last; ++position) {
      const auto& expected = prompt.logits[position - prompt.first];
      ASSERT_EQ(expected.size(), logits[position].size());
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(logits[position][i], expected[i], 2e-3)
            << prompt.text << ", position " << position << ", token " << i;
      }
    }
  }
}

TEST_P(GoldenTest, Bf16ActivationsStayWithinTheDivergenceBound) {
  for (const std::string& backend : AvailableBackends()) {
    TestModel model({.checkpoint = GetParam().checkpoint,
                     .backend = backend,
                     .linear = GetParam().quantized ? DType::kF8E4M3 : DType::kBF16});
    double sum = 0;
    int count = 0;
    for (const GoldenPrompt& prompt : Prompts()) {
      model.Restart();
      const auto logits = model.Step(prompt.ids);
      for (int position = prompt.first; position < prompt.last; ++position) {
        sum += Divergence(prompt.logits[position - prompt.first], logits[position]);
        ++count;
      }
    }
    std::printf("%s %s: mean KL %.2e\n", Name(GetParam()).c_str(), backend.c_str(), sum / count);
    EXPECT_LE(sum / count, 1.5e-4) << backend;
  }
}

TEST_P(GoldenTest, GreedyTokensAreTheReferencesWhereItIsSure) {
  for (const std::string& backend : AvailableBackends()) {
    TestModel model({.checkpoint = GetParam().checkpoint,
                     .backend = backend,
                     .linear = GetParam().quantized ? DType::kF8E4M3 : DType::kBF16});
    for (const GoldenPrompt& prompt : Prompts()) {
      model.Restart();
      TokenId best = Best(model.Step(prompt.ids).back());
      bool free_running_agrees = true;  // fed our own ids, we have given the reference's so far
      for (size_t step = 0; step < prompt.greedy.size(); ++step) {
        free_running_agrees = free_running_agrees && prompt.gaps[step] >= 0.05;
        if (free_running_agrees) {
          ASSERT_EQ(best, prompt.greedy[step])
              << backend << ": " << prompt.text << ", step " << step;
        }
        if (prompt.gaps[step] >= 0.1) {
          ASSERT_EQ(best, prompt.greedy[step])
              << backend << ", fed the reference's ids: " << prompt.text << ", step " << step;
        }
        best = Best(model.Step({prompt.greedy[step]}).back());
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenTest,
                         testing::Values(Case{"tiny", false}, Case{"tiny", true},
                                         Case{"small", false}, Case{"small", true},
                                         Case{"window", false}, Case{"window", true}),
                         [](const auto& test) { return Name(test.param); });

}  // namespace
}  // namespace marcoro
