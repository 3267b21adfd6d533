// A conversation, kept short enough for the model's context.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "marcoro/v1/inference.pb.h"

namespace marcoro {

class ChatHistory {
 public:
  // `system` is the system message; empty: none. It is never dropped.
  explicit ChatHistory(std::string system);

  void AddUser(std::string content) { Add("user", std::move(content)); }
  void AddAssistant(std::string content) { Add("assistant", std::move(content)); }
  // Takes back the last message, which is a user's that got no answer.
  void RemoveLast() { chat_.mutable_messages()->RemoveLast(); }
  // Forgets everything but the system message.
  void Reset();

  const v1::Chat& chat() const { return chat_; }

  // Tokens of a chat as the model's template renders it.
  using CountTokens = std::function<absl::StatusOr<int>(const v1::Chat& chat)>;
  // Drops the oldest turns (a user's message and its answer), but never the last user's message,
  // until the chat has at most `most_tokens`. How many turns were dropped, or count's error.
  absl::StatusOr<int> Trim(const CountTokens& count, int most_tokens);

 private:
  void Add(const char* role, std::string content);
  // Whether there was an older turn than the last one to drop.
  bool DropOldestTurn();

  v1::Chat chat_;
};

}  // namespace marcoro
