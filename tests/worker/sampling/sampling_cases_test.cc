// Distributions that Hugging Face transformers' logits processors leave
// (tests/data/sampling_cases.json).
#include "tests/worker/sampling/sampling_cases.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/worker/sampling/reference.h"
#include "worker/sampling/distribution.h"
#include "worker/sampling/logit_adjustments.h"

namespace marcoro {
namespace {

using nlohmann::json;

constexpr double kTolerance = 1e-5;

TEST(SamplingCasesTest, LeavesTheDistributionOfTheReference) {
  std::ifstream file(std::string(MARCORO_TEST_DATA) + "/sampling_cases.json");
  const json cases = json::parse(file)["cases"];
  ASSERT_EQ(cases.size(), 42u);
  for (size_t c = 0; c < cases.size(); ++c) {
    SCOPED_TRACE(std::to_string(c) + ": " + cases[c]["params"].dump());
    const SamplingParams params = ParseParams(cases[c]["params"]);
    const auto prompt = cases[c]["prompt_ids"].get<std::vector<TokenId>>();
    const auto generated = cases[c]["generated_ids"].get<std::vector<TokenId>>();
    const auto logits = cases[c]["logits"].get<std::vector<float>>();
    const auto expected = cases[c]["probabilities"].get<std::vector<double>>();

    std::vector<float> adjusted = logits;
    LogitAdjustments adjustments(params, prompt);
    for (const TokenId token : generated) adjustments.Append(token);
    adjustments.Apply(absl::MakeSpan(adjusted));
    TokenDistribution distribution;
    distribution.Build(adjusted, ReferenceSummary(adjusted).max, params);
    std::vector<double> actual(logits.size(), 0.0);
    for (const auto& [id, probability] : distribution.Probabilities()) actual[id] = probability;

    // The test's own plain reference, which other tests compare with, is held to the same answers.
    const std::vector<double> plain = ReferenceDistribution(logits, params, prompt, generated);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(actual[i], expected[i], kTolerance) << "token " << i;
      if (expected[i] == 0) {
        EXPECT_EQ(actual[i], 0) << "token " << i << " is cut off";
      }
      if (expected[i] > 1e-8) {
        EXPECT_GT(actual[i], 0) << "token " << i << " is not";
      }
      EXPECT_NEAR(plain[i], expected[i], kTolerance) << "token " << i;
    }
  }
}

}  // namespace
}  // namespace marcoro
