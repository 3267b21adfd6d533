// Whole models with an FP8 KV cache against an independent implementation of the same: the
// divergences of tests/data/README.md.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "tests/worker/model/golden_logits.h"
#include "tests/worker/model/test_model.h"

namespace marcoro {
namespace {

struct Case {
  std::string checkpoint;
  bool quantized;  // the linear weights
  // Mean KL(golden ‖ transformers in float32 with keys and values replaced by their codes times
  // scales) over all prompts.
  double divergence;
};

class KvFp8GoldenTest : public testing::TestWithParam<Case> {
 protected:
  // Over the prompts that are for the backend `prompts_of`.
  double MeanDivergence(TestModelOptions options, const std::string& prompts_of) const {
    options.checkpoint = GetParam().checkpoint;
    options.kv = KvFormat::kFp8;
    TestModel model(options);
    double sum = 0;
    int count = 0;
    for (const GoldenPrompt& prompt :
         ReadGolden(GetParam().checkpoint, GetParam().quantized ? "_fp8" : "", prompts_of)) {
      model.Restart();
      const auto logits = model.Step(prompt.ids);
      for (int position = prompt.first; position < prompt.last; ++position) {
        sum += Divergence(prompt.logits[position - prompt.first], logits[position]);
        ++count;
      }
    }
    return sum / count;
  }
  double Float32Divergence(const std::string& prompts_of) const {
    return MeanDivergence({.backend = "reference",
                           .activations = DType::kF32,
                           .linear = GetParam().quantized ? DType::kF8E4M3 : DType::kF32},
                          prompts_of);
  }
};

TEST_P(KvFp8GoldenTest, Float32ReferenceDivergesAsMuchAsTheIndependentImplementation) {
  const double divergence = Float32Divergence("reference");
  EXPECT_NEAR(divergence, GetParam().divergence, 0.05 * GetParam().divergence);
}

TEST_P(KvFp8GoldenTest, Bf16ActivationsAddNoMoreThanTheyDoWithABf16Cache) {
  for (const std::string& backend : AvailableBackends()) {
    const double divergence = MeanDivergence(
        {.backend = backend, .linear = GetParam().quantized ? DType::kF8E4M3 : DType::kBF16},
        backend);
    std::printf("%s %s: mean KL %.2e\n", GetParam().checkpoint.c_str(), backend.c_str(),
                divergence);
    const double exact = RunsAllPrompts(GetParam().checkpoint, backend)
                             ? GetParam().divergence
                             : Float32Divergence(backend);
    EXPECT_LE(divergence, exact + 1.5e-4) << backend;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Checkpoints, KvFp8GoldenTest,
    testing::Values(Case{"tiny", false, 3.17e-4}, Case{"tiny", true, 2.69e-4},
                    Case{"small", false, 3.99e-4}, Case{"small", true, 5.40e-4},
                    Case{"window", false, 1.14e-4}, Case{"window", true, 1.16e-4}),
    [](const auto& test) {
      return test.param.checkpoint + (test.param.quantized ? "_fp8" : "_stored");
    });

}  // namespace
}  // namespace marcoro
