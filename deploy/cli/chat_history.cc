#include "deploy/cli/chat_history.h"

#include <utility>

namespace marcoro {

ChatHistory::ChatHistory(std::string system) {
  if (!system.empty()) Add("system", std::move(system));
}

void ChatHistory::Add(const char* role, std::string content) {
  v1::Message* message = chat_.add_messages();
  message->set_role(role);
  message->set_content(std::move(content));
}

void ChatHistory::Reset() {
  while (!chat_.messages().empty() && chat_.messages().rbegin()->role() != "system") RemoveLast();
}

absl::StatusOr<int> ChatHistory::Trim(const CountTokens& count, int most_tokens) {
  int dropped = 0;
  while (true) {
    const absl::StatusOr<int> tokens = count(chat_);
    if (!tokens.ok()) return tokens.status();
    if (*tokens <= most_tokens || !DropOldestTurn()) return dropped;
    ++dropped;
  }
}

bool ChatHistory::DropOldestTurn() {
  auto* messages = chat_.mutable_messages();
  const int first = !messages->empty() && messages->Get(0).role() == "system" ? 1 : 0;
  int next = first + 1;
  while (next < messages->size() && messages->Get(next).role() != "user") ++next;
  if (next >= messages->size()) return false;
  messages->DeleteSubrange(first, next - first);
  return true;
}

}  // namespace marcoro
