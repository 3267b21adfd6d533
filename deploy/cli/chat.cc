// marcoro chat: a conversation in the terminal.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "deploy/cli/chat_history.h"
#include "deploy/cli/client.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/generate_flags.h"
#include "deploy/cli/line_reader.h"
#include "deploy/cli/text_input.h"

namespace marcoro {
namespace {

struct ChatFlags {
  ClientOptions client;
  SamplingFlags sampling;
  std::string model;
  std::string system;
};

FlagTable Flags(ChatFlags* flags) {
  FlagTable table(
      "usage: marcoro chat [flags]\n\n"
      "Each line is a message; its answer is streamed. The conversation goes along with every "
      "message; when it no longer\nfits the context, the oldest turns are dropped. /reset forgets "
      "it, /quit or the end of input ends, Ctrl-C stops\nthe current answer.");
  AddClientFlags(&table, &flags->client);
  table.Add("model", &flags->model, {.value = "NAME", .help = "Unset: the one that is served."});
  table.Add("system", &flags->system, {.value = "TEXT", .help = "System message."});
  AddSamplingFlags(&table, &flags->sampling);
  return table;
}

void Notice(const std::string& text) {
  std::fflush(stdout);
  std::fputs(absl::StrCat("[", text, "]\n").c_str(), stderr);
}

class Conversation {
 public:
  Conversation(const ChatFlags& flags, v1::GenerateRequest options, LineReader* lines)
      : flags_(flags),
        options_(std::move(options)),
        lines_(*lines),
        client_(flags.client),
        history_(flags.system) {}

  absl::Status Start() {
    const auto model = client_.GetModel();
    if (!model.ok()) return model.status();
    constexpr int kDefaultAnswer = 256;
    const int context = static_cast<int>(model->context_length());
    const int answer =
        options_.has_max_tokens() ? static_cast<int>(options_.max_tokens()) : kDefaultAnswer;
    most_prompt_tokens_ = context - std::min(answer, context / 2);
    if (terminal_) {
      Notice(
          absl::StrCat(model->name(), ", ", context,
                       " tokens of context; /reset forgets, /quit ends, Ctrl-C stops an answer"));
    }
    return absl::OkStatus();
  }

  // Until /quit or the end of input; from a pipe also until the first failure.
  absl::Status Run() {
    std::string line;
    while (true) {
      if (terminal_) {
        std::fputs("> ", stdout);
        std::fflush(stdout);
      }
      switch (lines_.Next(&line)) {
        case LineReader::Event::kEnd:
          if (terminal_) std::fputs("\n", stdout);
          return absl::OkStatus();
        case LineReader::Event::kInterrupt:
          std::fputs("\n", stdout);
          Notice("/quit or Ctrl-D ends the chat");
          continue;
        case LineReader::Event::kTooLong:
          Notice("that line is too long and was skipped");
          continue;
        case LineReader::Event::kLine:
          break;
      }
      const absl::string_view command = absl::StripAsciiWhitespace(line);
      if (command.empty()) continue;
      if (command == "/quit") return absl::OkStatus();
      if (command == "/reset") {
        history_.Reset();
        Notice("the conversation is forgotten");
        continue;
      }
      const absl::Status status = Turn(line);
      if (status.ok()) continue;
      if (!terminal_) return status;
      Notice(std::string(status.message()));
    }
  }

 private:
  absl::Status Turn(const std::string& line) {
    auto content = CheckedText(line, "the message");
    if (!content.ok()) return content.status();
    history_.AddUser(*std::move(content));
    absl::Status status = Trim();
    std::string answer;
    if (status.ok()) status = Answer(&answer);
    if (answer.empty()) {
      history_.RemoveLast();
    } else {
      history_.AddAssistant(std::move(answer));
    }
    return status;
  }

  absl::Status Trim() {
    const auto dropped = history_.Trim(
        [this](const v1::Chat& chat) -> absl::StatusOr<int> {
          v1::TokenizeRequest request;
          request.set_model(flags_.model);
          *request.mutable_chat() = chat;
          const auto response = client_.Tokenize(request);
          if (!response.ok()) return response.status();
          return response->token_ids_size();
        },
        most_prompt_tokens_);
    if (!dropped.ok()) return dropped.status();
    if (*dropped > 0) {
      Notice(absl::StrCat("the oldest ", *dropped,
                          " turn(s) no longer fit the context and were "
                          "dropped"));
    }
    return absl::OkStatus();
  }

  absl::Status Answer(std::string* answer) {
    v1::GenerateRequest request = options_;
    *request.mutable_chat() = history_.chat();
    bool stopped = false;
    const absl::Status status = client_.GenerateStream(
        request,
        [&](const v1::GenerateStreamResponse& message) {
          for (const v1::Choice& choice : message.choices()) {
            std::fwrite(choice.text().data(), 1, choice.text().size(), stdout);
            *answer += choice.text();
          }
          std::fflush(stdout);
        },
        [&] { return stopped = stopped || lines_.TakeInterrupt(); });
    if (answer->empty() || answer->back() != '\n') std::fputs("\n", stdout);
    std::fflush(stdout);
    if (!stopped) return status;
    Notice("stopped");
    return absl::OkStatus();
  }

  const ChatFlags& flags_;
  const v1::GenerateRequest options_;
  LineReader& lines_;
  Client client_;
  ChatHistory history_;
  int most_prompt_tokens_ = 0;
  const bool terminal_ = isatty(STDIN_FILENO) != 0;
};

}  // namespace

int ChatCommand(const std::vector<std::string>& arguments) {
  ChatFlags flags;
  const CommandArguments parsed = ParseCommand("chat", Flags(&flags), arguments, 0);
  if (parsed.exit_code) return *parsed.exit_code;
  if (flags.sampling.n.value_or(1) != 1) return UsageError("chat", "--n must be 1 in a chat");
  v1::GenerateRequest options;
  if (absl::Status status = SetSampling(flags.sampling, &options); !status.ok()) {
    return UsageError("chat", status.message());
  }
  options.set_model(flags.model);
  LineReader lines;  // before the client and its threads
  Conversation conversation(flags, std::move(options), &lines);
  absl::Status status = conversation.Start();
  if (status.ok()) status = conversation.Run();
  return status.ok() ? 0 : Failure("chat", status);
}

}  // namespace marcoro
