// marcoro generate: a prompt in, its continuation out, as it is generated.
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "deploy/cli/client.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/generate_flags.h"
#include "deploy/cli/text_input.h"
#include "deploy/cli/token_table.h"

namespace marcoro {
namespace {

struct GenerateFlags {
  ClientOptions client;
  SamplingFlags sampling;
  std::string model;
  bool chat = false;
  std::string system;
  std::string token_ids;
  bool echo = false;
  std::optional<int32_t> logprobs, prompt_logprobs;
  bool stream = true;
  bool json = false;
  bool stats = false;
};

FlagTable Flags(GenerateFlags* flags) {
  FlagTable table(
      "usage: marcoro generate [flags] [PROMPT]\n\n"
      "Streams the continuation of the prompt to standard output. Without PROMPT, or with -, the "
      "prompt is standard input.");
  AddClientFlags(&table, &flags->client);
  table.Add("model", &flags->model, {.value = "NAME", .help = "Unset: the one that is served."});
  table.Add("chat", &flags->chat,
            {.help = "The prompt is a user's message: the model's chat template is applied."});
  table.Add("system", &flags->system,
            {.value = "TEXT", .help = "System message in front of it; implies --chat."});
  table.Add("token-ids", &flags->token_ids,
            {.value = "ID,…", .help = "Token ids to continue, instead of a text."});
  AddSamplingFlags(&table, &flags->sampling);
  table.Add("echo", &flags->echo, {.help = "Return the prompt's text too."});
  table.Add("logprobs", &flags->logprobs,
            {.value = "N",
             .help = "After the text, a table of its tokens with log-probabilities and N "
                     "alternatives."});
  table.Add("prompt-logprobs", &flags->prompt_logprobs,
            {.value = "N", .help = "The same for the tokens of the prompt."});
  table.Add("stream", &flags->stream,
            {.help = "Write text as it comes; with --json, a message a line. Otherwise, and for "
                     "several choices as text, when all is there."});
  table.Add("json", &flags->json, {.help = "Write the server's messages as JSON."});
  table.Add("stats", &flags->stats, {.help = "Tokens and times on standard error at the end."});
  return table;
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateFlags& flags,
                                                const std::vector<std::string>& positional) {
  v1::GenerateRequest request;
  if (absl::Status status = SetSampling(flags.sampling, &request); !status.ok()) return status;
  request.set_model(flags.model);
  if (flags.echo) request.set_echo(true);
  if (flags.logprobs) request.set_logprobs(*flags.logprobs);
  if (flags.prompt_logprobs) request.set_prompt_logprobs(*flags.prompt_logprobs);
  if (!flags.token_ids.empty()) {
    if (!positional.empty() || flags.chat || !flags.system.empty()) {
      return absl::InvalidArgumentError(
          "--token-ids takes the place of a prompt: give one of them");
    }
    const auto ids = ParseTokenIds("token-ids", flags.token_ids);
    if (!ids.ok()) return ids.status();
    request.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
    return request;
  }
  auto prompt = positional.empty() || positional[0] == "-" ? ReadText("-")
                                                           : CheckedText(positional[0], "PROMPT");
  if (!prompt.ok()) return prompt.status();
  if (!flags.chat && flags.system.empty()) {
    request.set_prompt(*std::move(prompt));
    return request;
  }
  if (!flags.system.empty()) {
    v1::Message* message = request.mutable_chat()->add_messages();
    message->set_role("system");
    message->set_content(flags.system);
  }
  v1::Message* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(*std::move(prompt));
  return request;
}

void PrintStats(const v1::Usage& usage, const v1::Timings& timings, uint64_t seed) {
  const double decode = timings.decode_seconds();
  const double rate = decode > 0 ? (usage.generated_tokens() - 1) / decode : 0;
  const std::string line = absl::StrFormat(
      "prompt %u tokens (%u cached), generated %u; first token after %.3f s, then %.1f tokens/s, "
      "%.3f s in all; seed %u\n",
      usage.prompt_tokens(), usage.cached_tokens(), usage.generated_tokens(),
      timings.first_token_seconds(), rate, timings.total_seconds(), seed);
  std::fputs(line.c_str(), stderr);
}

void Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

// What a stream's messages say together, besides the text that was written already.
struct StreamTotals {
  v1::Choice tokens;  // logprobs only
  v1::GenerateStreamResponse last;
  google::protobuf::RepeatedPtrField<v1::TokenLogprob> prompt;
  bool ended_line = true;
};

absl::Status Stream(const GenerateFlags& flags, const v1::GenerateRequest& request,
                    Client* client) {
  StreamTotals totals;
  const absl::Status status =
      client->GenerateStream(request, [&](const v1::GenerateStreamResponse& message) {
        if (flags.json) Print(ToJson(message, /*indent=*/false));
        totals.prompt.MergeFrom(message.prompt_logprobs());
        for (const v1::Choice& choice : message.choices()) {
          totals.tokens.mutable_logprobs()->MergeFrom(choice.logprobs());
          if (flags.json || choice.text().empty()) continue;
          Print(choice.text());
          totals.ended_line = choice.text().back() == '\n';
        }
        totals.last = message;
      });
  if (!totals.ended_line) Print("\n");
  if (!status.ok()) return status;
  if (!flags.json && !totals.prompt.empty()) Print(absl::StrCat("\n", TokenTable(totals.prompt)));
  if (!flags.json && !totals.tokens.logprobs().empty()) {
    Print(absl::StrCat("\n", TokenTable(totals.tokens.logprobs())));
  }
  if (flags.stats) PrintStats(totals.last.usage(), totals.last.timings(), totals.last.seed());
  return absl::OkStatus();
}

absl::Status Whole(const GenerateFlags& flags, const v1::GenerateRequest& request, Client* client) {
  const auto response = client->Generate(request);
  if (!response.ok()) return response.status();
  if (flags.json) {
    Print(ToJson(*response, /*indent=*/true));
  } else {
    if (!response->prompt_logprobs().empty())
      Print(absl::StrCat(TokenTable(response->prompt_logprobs()), "\n"));
    for (const v1::Choice& choice : response->choices()) {
      if (response->choices_size() > 1) Print(absl::StrCat("--- choice ", choice.index(), "\n"));
      Print(absl::StrCat(choice.text(), "\n"));
      if (!choice.logprobs().empty()) Print(absl::StrCat("\n", TokenTable(choice.logprobs())));
    }
  }
  if (flags.stats) PrintStats(response->usage(), response->timings(), response->seed());
  return absl::OkStatus();
}

}  // namespace

int GenerateCommand(const std::vector<std::string>& arguments) {
  GenerateFlags flags;
  const CommandArguments parsed = ParseCommand("generate", Flags(&flags), arguments, 1);
  if (parsed.exit_code) return *parsed.exit_code;
  const auto request = MakeRequest(flags, parsed.positional);
  if (!request.ok()) return UsageError("generate", request.status().message());
  Client client(flags.client);
  const bool several = request->n() > 1 && !flags.json;
  const absl::Status status =
      flags.stream && !several ? Stream(flags, *request, &client) : Whole(flags, *request, &client);
  return status.ok() ? 0 : Failure("generate", status);
}

}  // namespace marcoro
