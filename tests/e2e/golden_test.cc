// The whole journey gives what an independent implementation gives.
#include "tests/e2e/golden.h"

#include <cmath>

#include "gtest/gtest.h"
#include "tests/e2e/cluster.h"

namespace marcoro {
namespace {

// Below it, BF16 activations may choose the other of two tokens.
constexpr double kClearGap = 0.05;
// Of a log-probability with BF16 activations; the bound on their distribution is in the worker's
// own tests.
constexpr double kTolerance = 0.1;

// The reference has cut the text of its longest prompt to this many tokens.
constexpr size_t kCutPrompt = 420;

struct Journey {
  const char* model;
  const char* weights;
  int tp;
};

void PrintTo(const Journey& journey, std::ostream* out) {
  *out << journey.model << " " << journey.weights << " tp " << journey.tp;
}

std::string Name(const ::testing::TestParamInfo<Journey>& info) {
  return std::string(info.param.model) + "_" + info.param.weights + "_tp" +
         std::to_string(info.param.tp);
}

class GoldenTest : public ::testing::TestWithParam<Journey> {
 protected:
  GoldenTest()
      : cluster_({.model = GetParam().model,
                  .tp = GetParam().tp,
                  .flags = {std::string("--weights=") + GetParam().weights}}),
        prompts_(LoadGolden(GetParam().model)) {}
  void SetUp() override { ASSERT_TRUE(cluster_.ready()) << cluster_.log(); }

  const GoldenGreedy& Expected(const GoldenPrompt& prompt) const {
    return std::string(GetParam().weights) == "fp8" ? prompt.greedy_fp8 : prompt.greedy;
  }
  void ExpectText(const v1::GenerateResponse& response);

  Cluster cluster_;
  const std::vector<GoldenPrompt> prompts_;
};

// The text is what decoding prompt and answer at once gives, without the prompt.
void GoldenTest::ExpectText(const v1::GenerateResponse& response) {
  const v1::Choice& choice = response.choices(0);
  v1::DetokenizeRequest request;
  request.add_token_ids(262);  // in front, so that no space is taken from the beginning
  request.mutable_token_ids()->MergeFrom(choice.token_ids());
  v1::DetokenizeResponse whole;
  ASSERT_TRUE(cluster_.client().Detokenize(request, &whole).ok());
  v1::DetokenizeRequest front;
  front.add_token_ids(262);
  v1::DetokenizeResponse before;
  ASSERT_TRUE(cluster_.client().Detokenize(front, &before).ok());
  EXPECT_EQ(before.text() + choice.text(), whole.text());
}

TEST_P(GoldenTest, GreedyAnswersEqualTheReferenceWhileItsChoiceIsClear) {
  size_t compared = 0;
  for (const GoldenPrompt& prompt : prompts_) {
    SCOPED_TRACE(prompt.text.substr(0, 40));
    v1::GenerateRequest request = Greedy(prompt.text, 40);
    if (prompt.ids.size() == kCutPrompt) {
      request.mutable_token_ids()->mutable_ids()->Add(prompt.ids.begin(), prompt.ids.end());
    }
    request.set_logprobs(0);
    const Reply reply = cluster_.client().Generate(request);
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_EQ(reply.response.usage().prompt_tokens(), prompt.ids.size());
    const v1::Choice& choice = reply.response.choices(0);
    ASSERT_EQ(choice.token_ids_size(), 40);
    const GoldenGreedy& expected = Expected(prompt);
    for (int i = 0; i < 40 && expected.gaps[i] >= kClearGap; ++i) {
      ASSERT_EQ(choice.token_ids(i), expected.ids[i]) << "step " << i;
      EXPECT_NEAR(choice.logprobs(i).logprob(), expected.logprobs[i], kTolerance) << "step " << i;
      ++compared;
    }
    ExpectText(reply.response);
  }
  EXPECT_GE(compared, 80u) << "the goldens leave too little to compare";
}

TEST_P(GoldenTest, ScoresEqualTheReferenceAtEveryStep) {
  for (const GoldenPrompt& prompt : prompts_) {
    SCOPED_TRACE(prompt.text.substr(0, 40));
    const GoldenGreedy& expected = Expected(prompt);
    v1::ScoreRequest request;
    request.mutable_token_ids()->mutable_ids()->Add(prompt.ids.begin(), prompt.ids.end());
    request.mutable_token_ids()->mutable_ids()->Add(expected.ids.begin(), expected.ids.end());
    request.set_top(1);
    v1::ScoreResponse score;
    const grpc::Status status = cluster_.client().Score(request, &score);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_EQ(static_cast<size_t>(score.tokens_size()), prompt.ids.size() + expected.ids.size());
    for (size_t i = 0; i < expected.ids.size(); ++i) {
      const v1::TokenLogprob& token = score.tokens(static_cast<int>(prompt.ids.size() + i));
      EXPECT_EQ(token.token_id(), expected.ids[i]);
      EXPECT_NEAR(token.logprob(), expected.logprobs[i], kTolerance) << "step " << i;
      if (expected.gaps[i] >= 0.1) {
        EXPECT_EQ(token.top(0).token_id(), expected.ids[i]) << "step " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest,
                         ::testing::Values(Journey{"small", "fp8", 1}, Journey{"small", "fp8", 2},
                                           Journey{"small", "fp8", 4}, Journey{"small", "bf16", 1},
                                           Journey{"small", "bf16", 2}, Journey{"tiny", "fp8", 2},
                                           Journey{"tiny", "bf16", 1}, Journey{"window", "fp8", 1},
                                           Journey{"window", "bf16", 2}),
                         Name);

}  // namespace
}  // namespace marcoro
