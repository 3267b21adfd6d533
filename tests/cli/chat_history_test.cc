#include "deploy/cli/chat_history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace marcoro {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Contents(const ChatHistory& history) {
  std::vector<std::string> contents;
  for (const v1::Message& message : history.chat().messages()) {
    contents.push_back(message.content());
  }
  return contents;
}

// Every message has ten tokens.
absl::StatusOr<int> TenEach(const v1::Chat& chat) { return 10 * chat.messages_size(); }

ChatHistory ThreeTurns(const std::string& system) {
  ChatHistory history(system);
  history.AddUser("u1");
  history.AddAssistant("a1");
  history.AddUser("u2");
  history.AddAssistant("a2");
  history.AddUser("u3");
  return history;
}

TEST(ChatHistoryTest, MessagesStandInOrderBehindTheSystemMessage) {
  const ChatHistory history = ThreeTurns("s");
  EXPECT_THAT(Contents(history), ElementsAre("s", "u1", "a1", "u2", "a2", "u3"));
  EXPECT_EQ(history.chat().messages(0).role(), "system");
  EXPECT_EQ(history.chat().messages(1).role(), "user");
  EXPECT_EQ(history.chat().messages(2).role(), "assistant");
}

TEST(ChatHistoryTest, AConversationThatFitsStaysWhole) {
  ChatHistory history = ThreeTurns("");
  EXPECT_EQ(*history.Trim(TenEach, 50), 0);
  EXPECT_EQ(Contents(history).size(), 5u);
}

TEST(ChatHistoryTest, OldestTurnsGoFirstAndWithTheirAnswers) {
  ChatHistory history = ThreeTurns("");
  EXPECT_EQ(*history.Trim(TenEach, 49), 1);
  EXPECT_THAT(Contents(history), ElementsAre("u2", "a2", "u3"));
}

TEST(ChatHistoryTest, AsManyTurnsGoAsNeedTo) {
  ChatHistory history = ThreeTurns("");
  EXPECT_EQ(*history.Trim(TenEach, 25), 2);
  EXPECT_THAT(Contents(history), ElementsAre("u3"));
}

TEST(ChatHistoryTest, TheSystemMessageAndTheLastQuestionAreNeverDropped) {
  ChatHistory history = ThreeTurns("s");
  EXPECT_EQ(*history.Trim(TenEach, 1), 2);
  EXPECT_THAT(Contents(history), ElementsAre("s", "u3"));
}

TEST(ChatHistoryTest, AnErrorOfTheCountIsPassedOnAndDropsNothing) {
  ChatHistory history = ThreeTurns("");
  const auto fail = [](const v1::Chat&) -> absl::StatusOr<int> {
    return absl::UnavailableError("gone");
  };
  EXPECT_EQ(history.Trim(fail, 1).status().message(), "gone");
  EXPECT_EQ(Contents(history).size(), 5u);
}

TEST(ChatHistoryTest, AQuestionWithoutAnAnswerCanBeTakenBack) {
  ChatHistory history = ThreeTurns("");
  history.RemoveLast();
  EXPECT_THAT(Contents(history), ElementsAre("u1", "a1", "u2", "a2"));
}

TEST(ChatHistoryTest, ResetKeepsTheSystemMessageOnly) {
  ChatHistory with_system = ThreeTurns("s");
  with_system.Reset();
  EXPECT_THAT(Contents(with_system), ElementsAre("s"));
  ChatHistory without = ThreeTurns("");
  without.Reset();
  EXPECT_TRUE(Contents(without).empty());
}

}  // namespace
}  // namespace marcoro
