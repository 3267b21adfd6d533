#include "coordinator/routing/sequence_log.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using worker::v1::SequenceUpdate;
using worker::v1::Submit;

Submit MakeSubmit(int prompt_tokens, uint32_t max_tokens) {
  Submit submit;
  for (int i = 0; i < prompt_tokens; ++i) submit.add_prompt_ids(100 + i);
  submit.set_max_tokens(max_tokens);
  return submit;
}

SequenceUpdate Tokens(const std::vector<uint32_t>& ids) {
  SequenceUpdate update;
  for (const uint32_t id : ids) update.add_token_ids(id);
  return update;
}

// Log-probabilities -first, -(first + 1), …
SequenceUpdate PromptLogprobs(int first, int count) {
  SequenceUpdate update;
  for (int i = 0; i < count; ++i) {
    update.add_prompt_logprobs()->set_logprob(-static_cast<float>(first + i));
  }
  return update;
}

TEST(SequenceLog, FirstAttemptIsTheSubmitItself) {
  Submit submit = MakeSubmit(3, 5);
  submit.set_prompt_logprobs(2);
  submit.mutable_sampling()->set_seed(7);
  SequenceLog log(submit);
  EXPECT_EQ(log.NextAttempt().SerializeAsString(), submit.SerializeAsString());
  EXPECT_FALSE(log.begun());
  EXPECT_FALSE(log.has_output());
}

TEST(SequenceLog, LaterAttemptsGoOnAfterAllTokens) {
  SequenceLog log(MakeSubmit(2, 5));
  log.NextAttempt();
  SequenceUpdate first = Tokens({11, 12});
  ASSERT_TRUE(log.Record(&first).ok());
  EXPECT_THAT(log.NextAttempt().generated_ids(), ElementsAre(11, 12));
  SequenceUpdate second = Tokens({13});
  ASSERT_TRUE(log.Record(&second).ok());
  EXPECT_THAT(log.NextAttempt().generated_ids(), ElementsAre(11, 12, 13));
}

TEST(SequenceLog, GeneratedIdsOfTheSubmitStayInFront) {
  Submit submit = MakeSubmit(2, 5);
  submit.add_generated_ids(9);
  SequenceLog log(submit);
  SequenceUpdate update = Tokens({11});
  ASSERT_TRUE(log.Record(&update).ok());
  EXPECT_THAT(log.NextAttempt().generated_ids(), ElementsAre(9, 11));
}

TEST(SequenceLog, ReportsQueueTimeAndCachedTokensOnce) {
  SequenceLog log(MakeSubmit(2, 5));
  for (int attempt = 0; attempt < 2; ++attempt) {
    log.NextAttempt();
    SequenceUpdate update = Tokens({1});
    update.set_queue_microseconds(50);
    update.set_cached_tokens(4);
    ASSERT_TRUE(log.Record(&update).ok());
    EXPECT_EQ(update.has_queue_microseconds(), attempt == 0);
    EXPECT_EQ(update.has_cached_tokens(), attempt == 0);
  }
}

TEST(SequenceLog, DropsPromptLogprobsThatTheCallerHas) {
  Submit submit = MakeSubmit(5, 5);
  submit.set_prompt_logprobs(0);
  SequenceLog log(submit);
  log.NextAttempt();
  SequenceUpdate update = PromptLogprobs(0, 3);
  ASSERT_TRUE(log.Record(&update).ok());
  EXPECT_EQ(update.prompt_logprobs_size(), 3);
  EXPECT_TRUE(log.has_output());

  // The next attempt repeats all five, two at a time.
  EXPECT_TRUE(log.NextAttempt().has_prompt_logprobs());
  update = PromptLogprobs(0, 2);
  ASSERT_TRUE(log.Record(&update).ok());
  EXPECT_EQ(update.prompt_logprobs_size(), 0);
  update = PromptLogprobs(2, 2);
  ASSERT_TRUE(log.Record(&update).ok());
  ASSERT_EQ(update.prompt_logprobs_size(), 1);
  EXPECT_EQ(update.prompt_logprobs(0).logprob(), -3);
  update = PromptLogprobs(4, 1);
  ASSERT_TRUE(log.Record(&update).ok());
  ASSERT_EQ(update.prompt_logprobs_size(), 1);
  EXPECT_EQ(update.prompt_logprobs(0).logprob(), -4);

  // Now the caller has them all: they are not asked for again.
  EXPECT_FALSE(log.NextAttempt().has_prompt_logprobs());
}

TEST(SequenceLog, IsCompleteWhenNothingAskedForIsMissing) {
  SequenceLog log(MakeSubmit(2, 2));
  EXPECT_FALSE(log.complete());
  SequenceUpdate update = Tokens({1});
  ASSERT_TRUE(log.Record(&update).ok());
  EXPECT_FALSE(log.complete());
  update = Tokens({2});
  ASSERT_TRUE(log.Record(&update).ok());
  EXPECT_TRUE(log.complete());
}

TEST(SequenceLog, ScoringIsCompleteAfterTheLastPromptLogprob) {
  Submit submit = MakeSubmit(2, 0);
  submit.set_prompt_logprobs(0);
  SequenceLog log(submit);
  EXPECT_FALSE(log.complete());
  SequenceUpdate update = PromptLogprobs(0, 1);
  ASSERT_TRUE(log.Record(&update).ok());
  EXPECT_FALSE(log.complete());
  update = PromptLogprobs(1, 1);
  ASSERT_TRUE(log.Record(&update).ok());
  EXPECT_TRUE(log.complete());
}

TEST(SequenceLog, RefusesMoreThanWasAskedFor) {
  SequenceLog tokens(MakeSubmit(2, 2));
  SequenceUpdate update = Tokens({1, 2, 3});
  EXPECT_EQ(tokens.Record(&update).code(), absl::StatusCode::kInternal);

  Submit scoring = MakeSubmit(2, 0);
  scoring.set_prompt_logprobs(0);
  SequenceLog log(scoring);
  update = PromptLogprobs(0, 3);
  EXPECT_EQ(log.Record(&update).code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace marcoro
