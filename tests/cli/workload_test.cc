#include "deploy/cli/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace marcoro {
namespace {

WorkloadOptions Options(const char* prompt, const char* output) {
  return {.prompt_tokens = *LengthDistribution::Parse(prompt),
          .output_tokens = *LengthDistribution::Parse(output),
          .vocabulary_size = 1024,
          .context_length = 256,
          .seed = 5};
}

TEST(WorkloadTest, ARequestIsAFunctionOfSeedAndIndex) {
  const Workload one(Options("uniform:5:50", "uniform:5:50"));
  const Workload same(Options("uniform:5:50", "uniform:5:50"));
  WorkloadOptions options = Options("uniform:5:50", "uniform:5:50");
  options.seed = 6;
  const Workload other(options);
  EXPECT_EQ(one.Request(17).SerializeAsString(), same.Request(17).SerializeAsString());
  EXPECT_NE(one.Request(17).SerializeAsString(), one.Request(18).SerializeAsString());
  EXPECT_NE(one.Request(17).SerializeAsString(), other.Request(17).SerializeAsString());
}

TEST(WorkloadTest, IdsAreOfTheVocabularyAndNoneIsSpecial) {
  const Workload workload(Options("200", "1"));
  for (uint64_t index = 0; index < 20; ++index) {
    const v1::GenerateRequest request = workload.Request(index);
    EXPECT_EQ(request.token_ids().ids_size(), 200);
    EXPECT_THAT(request.token_ids().ids(), testing::Each(testing::Ge(3u)));
    EXPECT_THAT(request.token_ids().ids(), testing::Each(testing::Lt(1024u)));
  }
}

TEST(WorkloadTest, OutputLengthsHold) {
  const v1::GenerateRequest request = Workload(Options("10", "77")).Request(0);
  EXPECT_TRUE(request.ignore_eos());
  EXPECT_EQ(request.max_tokens(), 77u);
}

TEST(WorkloadTest, PromptAndOutputAreCutToTheContext) {
  const v1::GenerateRequest output = Workload(Options("200", "100")).Request(0);
  EXPECT_EQ(output.token_ids().ids_size(), 200);
  EXPECT_EQ(output.max_tokens(), 56u);
  const v1::GenerateRequest prompt = Workload(Options("999", "100")).Request(0);
  EXPECT_EQ(prompt.token_ids().ids_size(), 255);
  EXPECT_EQ(prompt.max_tokens(), 1u);
}

TEST(WorkloadTest, TextPromptsAreTakenInTurn) {
  WorkloadOptions options = Options("10", "10");
  options.prompts = {"a", "b"};
  const Workload workload(options);
  EXPECT_EQ(workload.Request(0).prompt(), "a");
  EXPECT_EQ(workload.Request(1).prompt(), "b");
  EXPECT_EQ(workload.Request(2).prompt(), "a");
}

}  // namespace
}  // namespace marcoro
