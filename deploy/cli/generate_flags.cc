#include "deploy/cli/generate_flags.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace marcoro {
namespace {

constexpr double kAnyNumber = -1e18;

void AddNumberFlags(FlagTable* table, SamplingFlags* flags) {
  table->Add("max-tokens", &flags->max_tokens,
             {.value = "N", .help = "Most tokens to generate. The server's default: 256."});
  table->Add("min-tokens", &flags->min_tokens,
             {.value = "N", .help = "Hold off the end and stops until so many are generated."});
  table->Add("n", &flags->n, {.value = "N", .help = "Number of choices."});
  table->Add("seed", &flags->seed,
             {.value = "N", .help = "Seed of the draws. Unset: the server picks one."});
  table->Add("temperature", &flags->temperature,
             {.value = "X",
              .help = "0 is greedy. Unset, like all that follows: the model's own default.",
              .minimum = kAnyNumber});
  table->Add("top-k", &flags->top_k, {.value = "N", .help = "Keep the N likeliest tokens."});
  table->Add("top-p", &flags->top_p,
             {.value = "X",
              .help = "Keep the smallest set of tokens whose probability reaches X.",
              .minimum = kAnyNumber});
  table->Add("min-p", &flags->min_p,
             {.value = "X",
              .help = "Drop tokens less likely than X times the likeliest.",
              .minimum = kAnyNumber});
  table->Add("typical-p", &flags->typical_p,
             {.value = "X", .help = "Locally typical sampling.", .minimum = kAnyNumber});
  table->Add("repetition-penalty", &flags->repetition_penalty,
             {.value = "X",
              .help = "Divides positive and multiplies negative logits of tokens seen before.",
              .minimum = kAnyNumber});
  table->Add("presence-penalty", &flags->presence_penalty,
             {.value = "X",
              .help = "Subtracted from the logit of every token generated so far.",
              .minimum = kAnyNumber});
  table->Add("frequency-penalty", &flags->frequency_penalty,
             {.value = "X",
              .help = "Subtracted once for each time a token was generated.",
              .minimum = kAnyNumber});
  table->Add("priority", &flags->priority,
             {.value = "N", .help = "Higher is served first.", .minimum = kAnyNumber});
}

void AddTextFlags(FlagTable* table, SamplingFlags* flags) {
  table->Add("logit-bias", &flags->logit_bias,
             {.value = "ID:X,…", .help = "Added to the logits of these token ids. Repeatable."});
  table->Add("allowed-token-ids", &flags->allowed_token_ids,
             {.value = "ID,…", .help = "Only these ids can be generated. Repeatable."});
  table->Add("bad-words", &flags->bad_words,
             {.value = "TEXT", .help = "A text that is never completed. Repeatable."});
  table->Add("stop", &flags->stop,
             {.value = "TEXT", .help = "A text that ends the generation. Repeatable."});
  table->Add("stop-token-ids", &flags->stop_token_ids,
             {.value = "ID,…", .help = "Ids that end the generation. Repeatable."});
  table->Add("ignore-eos", &flags->ignore_eos, {.help = "Go on past the end of sequence."});
  table->Add("include-stop", &flags->include_stop, {.help = "Return a matched stop text too."});
  table->Add("skip-special-tokens", &flags->skip_special_tokens,
             {.help = "Leave special tokens out of the text; the server's default."});
  table->Add("parse-special-tokens", &flags->parse_special_tokens,
             {.help = "Recognise special tokens written in a prompt; the server's default."});
  table->Add("add-bos", &flags->add_bos,
             {.help = "Begin a prompt with the beginning-of-sequence token. Unset: as the "
                      "tokenizer is configured."});
}

absl::Status SetLogitBias(const SamplingFlags& flags, v1::GenerateRequest* request) {
  for (const std::string& list : flags.logit_bias) {
    for (const absl::string_view item : absl::StrSplit(list, ',')) {
      const std::vector<absl::string_view> parts = absl::StrSplit(item, ':');
      uint32_t id = 0;
      float bias = 0;
      if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &id) ||
          !absl::SimpleAtof(parts[1], &bias)) {
        return absl::InvalidArgumentError(
            absl::StrCat("--logit-bias=", list, ": must be ID:X, for example 13:-100,29:2.5"));
      }
      (*request->mutable_logit_bias())[id] = bias;
    }
  }
  return absl::OkStatus();
}

template <typename Field>
absl::Status AddTokenIds(absl::string_view flag, const std::vector<std::string>& lists,
                         Field* field) {
  for (const std::string& list : lists) {
    const auto ids = ParseTokenIds(flag, list);
    if (!ids.ok()) return ids.status();
    field->Add(ids->begin(), ids->end());
  }
  return absl::OkStatus();
}

void SetNumbers(const SamplingFlags& flags, v1::GenerateRequest* request) {
  if (flags.max_tokens) request->set_max_tokens(*flags.max_tokens);
  if (flags.min_tokens) request->set_min_tokens(*flags.min_tokens);
  if (flags.n) request->set_n(*flags.n);
  if (flags.seed) request->set_seed(*flags.seed);
  if (flags.temperature) request->set_temperature(static_cast<float>(*flags.temperature));
  if (flags.top_k) request->set_top_k(*flags.top_k);
  if (flags.top_p) request->set_top_p(static_cast<float>(*flags.top_p));
  if (flags.min_p) request->set_min_p(static_cast<float>(*flags.min_p));
  if (flags.typical_p) request->set_typical_p(static_cast<float>(*flags.typical_p));
  if (flags.repetition_penalty) {
    request->set_repetition_penalty(static_cast<float>(*flags.repetition_penalty));
  }
  if (flags.presence_penalty) {
    request->set_presence_penalty(static_cast<float>(*flags.presence_penalty));
  }
  if (flags.frequency_penalty) {
    request->set_frequency_penalty(static_cast<float>(*flags.frequency_penalty));
  }
  if (flags.priority) request->set_priority(*flags.priority);
}

void SetSwitches(const SamplingFlags& flags, v1::GenerateRequest* request) {
  if (flags.ignore_eos) request->set_ignore_eos(*flags.ignore_eos);
  if (flags.include_stop) request->set_include_stop(*flags.include_stop);
  if (flags.skip_special_tokens) request->set_skip_special_tokens(*flags.skip_special_tokens);
  if (flags.parse_special_tokens) request->set_parse_special_tokens(*flags.parse_special_tokens);
  if (flags.add_bos) request->set_add_bos(*flags.add_bos);
}

}  // namespace

void AddSamplingFlags(FlagTable* table, SamplingFlags* flags) {
  AddNumberFlags(table, flags);
  AddTextFlags(table, flags);
}

absl::StatusOr<std::vector<uint32_t>> ParseTokenIds(absl::string_view flag,
                                                    absl::string_view text) {
  std::vector<uint32_t> ids;
  for (const absl::string_view item : absl::StrSplit(text, ',')) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(item, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, "=", text, ": must be token ids, for example 1,13,29"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::Status SetSampling(const SamplingFlags& flags, v1::GenerateRequest* request) {
  SetNumbers(flags, request);
  SetSwitches(flags, request);
  request->mutable_stop()->Add(flags.stop.begin(), flags.stop.end());
  request->mutable_bad_words()->Add(flags.bad_words.begin(), flags.bad_words.end());
  if (absl::Status status = SetLogitBias(flags, request); !status.ok()) return status;
  if (absl::Status status = AddTokenIds("allowed-token-ids", flags.allowed_token_ids,
                                        request->mutable_allowed_token_ids());
      !status.ok()) {
    return status;
  }
  return AddTokenIds("stop-token-ids", flags.stop_token_ids, request->mutable_stop_token_ids());
}

}  // namespace marcoro
