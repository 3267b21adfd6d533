// Whole models against an independent implementation: the bounds of tests/data/README.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/kernels/cuda/device_backends.h"
#include "tests/worker/model/golden_logits.h"
#include "tests/worker/model/test_model.h"

namespace marcoro {
namespace {

TokenId Best(const std::vector<float>& logits) {
  return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// An emulated device takes a thousand times as long.
size_t MostSteps(const std::string& backend) {
  return backend == "cuda" && DeviceIsEmulated() ? 4 : SIZE_MAX;
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
  std::vector<GoldenPrompt> Prompts(const std::string& backend) const {
    return ReadGolden(GetParam().checkpoint, GetParam().quantized ? "_fp8" : "", backend);
  }
};

TEST_P(GoldenTest, Float32ReferenceGivesTheLogitsWithin2e3) {
  TestModel model({.checkpoint = GetParam().checkpoint,
                   .backend = "reference",
                   .activations = DType::kF32,
                   .linear = GetParam().quantized ? DType::kF8E4M3 : DType::kF32});
  for (const GoldenPrompt& prompt : Prompts("reference")) {
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
    for (const GoldenPrompt& prompt : Prompts(backend)) {
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
    for (const GoldenPrompt& prompt : Prompts(backend)) {
      model.Restart();
      TokenId best = Best(model.Step(prompt.ids).back());
      bool free_running_agrees = true;  // fed our own ids, we have given the reference's so far
      const size_t steps = std::min(prompt.greedy.size(), MostSteps(backend));
      for (size_t step = 0; step < steps; ++step) {
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

// What E4M3 inputs of the linear layers cost: in Hugging Face transformers, in float32, with the
// inputs of the row-quantized layers rounded to BF16 and then quantized by their segments, the mean
// KL from the logits of the same weights is `divergence` (see tests/data/README.md). Which way a
// number near the middle of two codes falls is another's choice with other sums, so half as much
// again is room for chance.
struct Simulated {
  std::string checkpoint;
  double divergence;
};

class QuantizedActivationsTest : public testing::TestWithParam<Simulated> {
 protected:
  // Over the prompts that are for the backend `prompts_of`.
  static double MeanDivergence(const std::string& backend, const std::string& prompts_of) {
    const std::string& checkpoint = GetParam().checkpoint;
    TestModel model({.checkpoint = checkpoint, .backend = backend, .activations = DType::kF8E4M3});
    double sum = 0;
    int count = 0;
    for (const GoldenPrompt& prompt : ReadGolden(checkpoint, "_fp8", prompts_of)) {
      model.Restart();
      const auto logits = model.Step(prompt.ids);
      for (int position = prompt.first; position < prompt.last; ++position) {
        sum += Divergence(prompt.logits[position - prompt.first], logits[position]);
        ++count;
      }
    }
    return sum / count;
  }
};

TEST_P(QuantizedActivationsTest, CostWhatASimulationSays) {
  for (const std::string& backend : AvailableBackends()) {
    const double divergence = MeanDivergence(backend, backend);
    std::printf("%s, E4M3 activations, %s: mean KL %.2e\n", GetParam().checkpoint.c_str(),
                backend.c_str(), divergence);
    const double expected = RunsAllPrompts(GetParam().checkpoint, backend)
                                ? GetParam().divergence
                                : MeanDivergence("reference", backend);
    EXPECT_LE(divergence, 1.5 * expected) << backend;
    EXPECT_GE(divergence, 0.5 * expected) << backend;
  }
}

TEST_P(QuantizedActivationsTest, AreForE4M3WeightsAlone) {
  const auto logits = [](DType activations) {
    TestModel model({.checkpoint = GetParam().checkpoint,
                     .backend = "auto",
                     .activations = activations,
                     .linear = DType::kBF16});
    return model.Step(ReadGolden(GetParam().checkpoint, "")[0].ids);
  };
  EXPECT_EQ(logits(DType::kF8E4M3), logits(DType::kBF16));
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, QuantizedActivationsTest,
                         testing::Values(Simulated{"tiny", 9.0e-4}, Simulated{"small", 4.6e-4},
                                         Simulated{"window", 4.8e-4}),
                         [](const auto& test) { return test.param.checkpoint; });

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenTest,
                         testing::Values(Case{"tiny", false}, Case{"tiny", true},
                                         Case{"small", false}, Case{"small", true},
                                         Case{"window", false}, Case{"window", true}),
                         [](const auto& test) { return Name(test.param); });

}  // namespace
}  // namespace marcoro
