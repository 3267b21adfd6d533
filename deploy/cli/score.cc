// marcoro score: how likely the model finds a text.
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "deploy/cli/client.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_line.h"
#include "deploy/cli/generate_flags.h"
#include "deploy/cli/score_totals.h"
#include "deploy/cli/text_input.h"
#include "deploy/cli/token_table.h"

namespace marcoro {
namespace {

struct ScoreFlags {
  ClientOptions client;
  std::string model;
  std::string file;
  std::string token_ids;
  std::optional<bool> add_bos, parse_special_tokens;
  int32_t top = 0;
  bool json = false;
};

FlagTable Flags(ScoreFlags* flags) {
  FlagTable table(
      "usage: marcoro score [flags] [TEXT]\n\n"
      "A table of the text's tokens with the natural logarithm of the probability that the model "
      "gives each,\ntheir sum and the perplexity, exp(-mean). The first token has none: nothing "
      "predicts it.\nWithout TEXT and --file, or with -, the text is standard input.");
  AddClientFlags(&table, &flags->client);
  table.Add("model", &flags->model, {.value = "NAME", .help = "Unset: the one that is served."});
  table.Add("file", &flags->file, {.value = "FILE", .help = "Score the text in this file."});
  table.Add("token-ids", &flags->token_ids,
            {.value = "ID,…", .help = "Score these token ids instead of a text."});
  table.Add("add-bos", &flags->add_bos,
            {.help = "Begin with the beginning-of-sequence token. Unset: as the tokenizer is "
                     "configured."});
  table.Add("parse-special-tokens", &flags->parse_special_tokens,
            {.help = "Recognise special tokens written in the text; the server's default."});
  table.Add("top", &flags->top,
            {.value = "N", .help = "Likeliest tokens to show at each position."});
  table.Add("json", &flags->json,
            {.help = "Write the server's answer, sum and perplexity as JSON."});
  return table;
}

absl::StatusOr<v1::ScoreRequest> MakeRequest(const ScoreFlags& flags,
                                             const std::vector<std::string>& positional) {
  const int given = static_cast<int>(positional.size()) + (flags.file.empty() ? 0 : 1) +
                    (flags.token_ids.empty() ? 0 : 1);
  if (given > 1) return absl::InvalidArgumentError("give one of TEXT, --file and --token-ids");
  v1::ScoreRequest request;
  request.set_model(flags.model);
  request.set_top(static_cast<uint32_t>(flags.top));
  if (flags.add_bos) request.set_add_bos(*flags.add_bos);
  if (flags.parse_special_tokens) request.set_parse_special_tokens(*flags.parse_special_tokens);
  if (!flags.token_ids.empty()) {
    const auto ids = ParseTokenIds("token-ids", flags.token_ids);
    if (!ids.ok()) return ids.status();
    request.mutable_token_ids()->mutable_ids()->Add(ids->begin(), ids->end());
    return request;
  }
  const bool argument = !positional.empty() && positional[0] != "-";
  auto text = argument ? CheckedText(positional[0], "TEXT")
                       : ReadText(flags.file.empty() ? "-" : flags.file);
  if (!text.ok()) return text.status();
  request.set_prompt(*std::move(text));
  return request;
}

std::string AsJson(const v1::ScoreResponse& response, const ScoreTotals& totals) {
  auto json = nlohmann::ordered_json::parse(ToJson(response, /*indent=*/false), nullptr,
                                            /*allow_exceptions=*/false);
  json["logprob_sum"] = totals.sum;
  json["scored_tokens"] = totals.tokens;
  if (totals.tokens > 0) json["perplexity"] = totals.perplexity();
  return json.dump(2) + "\n";
}

std::string AsTable(const v1::ScoreResponse& response, const ScoreTotals& totals) {
  std::string text = TokenTable(response.tokens());
  absl::StrAppendFormat(&text, "\nsum %.4f over %d tokens", totals.sum, totals.tokens);
  if (totals.tokens > 0) absl::StrAppendFormat(&text, ", perplexity %.4f", totals.perplexity());
  return text + "\n";
}

}  // namespace

int ScoreCommand(const std::vector<std::string>& arguments) {
  ScoreFlags flags;
  const CommandArguments parsed = ParseCommand("score", Flags(&flags), arguments, 1);
  if (parsed.exit_code) return *parsed.exit_code;
  const auto request = MakeRequest(flags, parsed.positional);
  if (!request.ok()) return UsageError("score", request.status().message());
  const auto response = Client(flags.client).Score(*request);
  if (!response.ok()) return Failure("score", response.status());
  const ScoreTotals totals = TotalsOf(response->tokens());
  const std::string text = flags.json ? AsJson(*response, totals) : AsTable(*response, totals);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace marcoro
