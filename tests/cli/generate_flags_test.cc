#include "deploy/cli/generate_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "deploy/cli/score_totals.h"
#include "deploy/cli/token_table.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

absl::StatusOr<v1::GenerateRequest> Request(const std::vector<std::string>& arguments) {
  SamplingFlags flags;
  FlagTable table("usage");
  AddSamplingFlags(&table, &flags);
  const auto parsed = table.Parse(arguments);
  if (!parsed.ok()) return parsed.status();
  v1::GenerateRequest request;
  if (absl::Status status = SetSampling(flags, &request); !status.ok()) return status;
  return request;
}

TEST(GenerateFlagsTest, WhatIsNotGivenIsUnset) {
  const auto request = Request({});
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->SerializeAsString(), "");
}

TEST(GenerateFlagsTest, ZeroAndFalseAreNotUnset) {
  const auto request = Request({"--temperature=0", "--min-tokens=0", "--no-add-bos", "--seed=0"});
  ASSERT_TRUE(request.ok());
  EXPECT_TRUE(request->has_temperature());
  EXPECT_TRUE(request->has_min_tokens());
  EXPECT_TRUE(request->has_add_bos());
  EXPECT_TRUE(request->has_seed());
  EXPECT_FALSE(request->has_top_p());
}

TEST(GenerateFlagsTest, EveryFieldHasItsFlag) {
  const auto request = Request({"--max-tokens=1",
                                "--min-tokens=1",
                                "--n=2",
                                "--seed=3",
                                "--temperature=0.5",
                                "--top-k=4",
                                "--top-p=0.5",
                                "--min-p=0.25",
                                "--typical-p=0.75",
                                "--repetition-penalty=1.5",
                                "--presence-penalty=-1",
                                "--frequency-penalty=2",
                                "--logit-bias=5:-100,7:2.5",
                                "--allowed-token-ids=1,2",
                                "--bad-words=x",
                                "--stop=a",
                                "--stop=b",
                                "--stop-token-ids=9",
                                "--ignore-eos",
                                "--include-stop",
                                "--no-skip-special-tokens",
                                "--no-parse-special-tokens",
                                "--add-bos",
                                "--priority=-3"});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->n(), 2u);
  EXPECT_EQ(request->seed(), 3u);
  EXPECT_EQ(request->temperature(), 0.5f);
  EXPECT_EQ(request->top_k(), 4u);
  EXPECT_EQ(request->top_p(), 0.5f);
  EXPECT_EQ(request->min_p(), 0.25f);
  EXPECT_EQ(request->typical_p(), 0.75f);
  EXPECT_EQ(request->repetition_penalty(), 1.5f);
  EXPECT_EQ(request->presence_penalty(), -1.0f);
  EXPECT_EQ(request->frequency_penalty(), 2.0f);
  EXPECT_THAT(request->logit_bias(), UnorderedElementsAre(Pair(5, -100.0f), Pair(7, 2.5f)));
  EXPECT_THAT(request->allowed_token_ids(), ElementsAre(1, 2));
  EXPECT_THAT(request->bad_words(), ElementsAre("x"));
  EXPECT_THAT(request->stop(), ElementsAre("a", "b"));
  EXPECT_THAT(request->stop_token_ids(), ElementsAre(9));
  EXPECT_TRUE(request->ignore_eos());
  EXPECT_TRUE(request->include_stop());
  EXPECT_FALSE(request->skip_special_tokens());
  EXPECT_FALSE(request->parse_special_tokens());
  EXPECT_EQ(request->priority(), -3);
}

TEST(GenerateFlagsTest, MalformedListsAreNamed) {
  EXPECT_THAT(std::string(Request({"--logit-bias=5"}).status().message()),
              HasSubstr("--logit-bias=5: must be ID:X"));
  EXPECT_THAT(std::string(Request({"--stop-token-ids=1,,2"}).status().message()),
              HasSubstr("--stop-token-ids=1,,2: must be token ids"));
  EXPECT_FALSE(Request({"--allowed-token-ids=-1"}).ok());
}

v1::TokenLogprob Token(const char* text, float logprob) {
  v1::TokenLogprob token;
  token.set_token(text);
  token.set_logprob(logprob);
  return token;
}

TEST(ScoreTotalsTest, TheFirstTokenOfAPromptDoesNotCount) {
  google::protobuf::RepeatedPtrField<v1::TokenLogprob> tokens;
  tokens.Add()->set_token("<s>");
  *tokens.Add() = Token("a", -1);
  *tokens.Add() = Token("b", -3);
  const ScoreTotals totals = TotalsOf(tokens);
  EXPECT_EQ(totals.tokens, 2);
  EXPECT_EQ(totals.sum, -4);
  EXPECT_DOUBLE_EQ(totals.perplexity(), 7.38905609893065);  // e²
}

TEST(TokenTableTest, TextsAreQuotedAndMissingLogprobsAreDashes) {
  google::protobuf::RepeatedPtrField<v1::TokenLogprob> tokens;
  tokens.Add()->set_token("<s>");
  *tokens.Add() = Token("a\n\"", -1.5);
  EXPECT_EQ(TokenTable(tokens),
            "     id  token                   logprob\n"
            "      0  \"<s>\"                         -\n"
            "      0  \"a\\n\\\"\"                 -1.5000\n");
}

}  // namespace
}  // namespace marcoro
