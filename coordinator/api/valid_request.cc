#include "coordinator/api/valid_request.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "coordinator/api/errors.h"
#include "coordinator/api/sampling_fields.h"
#include "coordinator/text/stop_matcher.h"

namespace marcoro {
namespace {

constexpr uint32_t kDefaultMaxTokens = 256;
constexpr uint32_t kMaxChoices = 16;
constexpr uint32_t kMaxLogprobs = 20;
constexpr int kMaxStopTokenIds = 64;
constexpr int kMaxBadWords = 256;
constexpr size_t kMaxBadWordBytes = 1024;
constexpr int32_t kMaxPriority = 100;
// Prompts count as alike if they share this many tokens, or as many whole KV blocks as they have.
constexpr size_t kAffinityTokens = 64;
constexpr size_t kBlockTokens = 16;

void CheckUpTo(absl::string_view field, uint64_t value, uint64_t low, uint64_t high,
               FieldViolations* violations) {
  if (value >= low && value <= high) return;
  violations->Add(field, absl::StrCat("must be from ", low, " to ", high, ", is ", value));
}

void CheckPriority(int32_t priority, FieldViolations* violations) {
  if (priority >= -kMaxPriority && priority <= kMaxPriority) return;
  violations->Add("priority", absl::StrCat("must be from ", -kMaxPriority, " to ", kMaxPriority,
                                           ", is ", priority));
}

void CheckTexts(absl::string_view field,
                const google::protobuf::RepeatedPtrField<std::string>& texts, int max_count,
                size_t max_bytes, FieldViolations* violations) {
  if (texts.size() > max_count) {
    violations->Add(
        field, absl::StrCat("has ", texts.size(), " texts, at most ", max_count, " are allowed"));
    return;
  }
  for (int i = 0; i < texts.size(); ++i) {
    if (!texts[i].empty() && texts[i].size() <= max_bytes) continue;
    violations->Add(
        absl::StrCat(field, "[", i, "]"),
        absl::StrCat("must have from 1 to ", max_bytes, " bytes, has ", texts[i].size()));
  }
}

// max_tokens and min_tokens as the request wants them, before the context cuts them.
void ReadLengths(const v1::GenerateRequest& request, worker::v1::Submit* submit,
                 FieldViolations* violations) {
  const uint32_t max_tokens = request.has_max_tokens() ? request.max_tokens() : kDefaultMaxTokens;
  if (max_tokens == 0) violations->Add("max_tokens", "must be at least 1, is 0");
  if (request.min_tokens() > max_tokens) {
    violations->Add("min_tokens", absl::StrCat("must be at most max_tokens, which is ", max_tokens,
                                               ", is ", request.min_tokens()));
  }
  submit->set_max_tokens(max_tokens);
  submit->set_min_tokens(request.min_tokens());
}

// Everything that can be checked without tokenizing.
absl::Status ReadFields(const v1::GenerateRequest& request, const ServedModel& model,
                        ValidGenerate* valid) {
  FieldViolations violations;
  worker::v1::Submit& submit = valid->submit;
  ReadLengths(request, &submit, &violations);
  valid->n = request.has_n() ? request.n() : 1;
  CheckUpTo("n", valid->n, 1, kMaxChoices, &violations);
  ReadSamplingFields(request, model.defaults, model.vocabulary_size, submit.mutable_sampling(),
                     &violations);
  CheckTexts("bad_words", request.bad_words(), kMaxBadWords, kMaxBadWordBytes, &violations);
  CheckTexts("stop", request.stop(), StopMatcher::kMaxStops, StopMatcher::kMaxStopBytes,
             &violations);
  CheckTokenIds("stop_token_ids", request.stop_token_ids(), kMaxStopTokenIds, model.vocabulary_size,
                &violations);
  if (request.has_logprobs()) {
    CheckUpTo("logprobs", request.logprobs(), 0, kMaxLogprobs, &violations);
    submit.set_logprobs(request.logprobs());
  }
  if (request.has_prompt_logprobs()) {
    CheckUpTo("prompt_logprobs", request.prompt_logprobs(), 0, kMaxLogprobs, &violations);
    submit.set_prompt_logprobs(request.prompt_logprobs());
  }
  CheckPriority(request.priority(), &violations);
  submit.set_priority(request.priority());
  *submit.mutable_stop_token_ids() = request.stop_token_ids();
  if (!request.ignore_eos()) {
    submit.mutable_stop_token_ids()->Add(model.eos_ids.begin(), model.eos_ids.end());
  }
  valid->stop.assign(request.stop().begin(), request.stop().end());
  valid->include_stop = request.include_stop();
  valid->skip_special_tokens = !request.has_skip_special_tokens() || request.skip_special_tokens();
  return violations.ToStatus();
}

absl::Status CheckTextFieldsHaveTokenizer(const v1::GenerateRequest& request,
                                          const ServedModel& model) {
  if (model.tokenizer != nullptr) return absl::OkStatus();
  if (!request.stop().empty()) return NoTokenizerError("stop", model);
  if (!request.bad_words().empty()) return NoTokenizerError("bad_words", model);
  return absl::OkStatus();
}

// The tokens that `text` becomes behind other text, where the tokenizer puts no space in front of
// it.
absl::StatusOr<std::vector<int32_t>> EncodeInside(const Tokenizer& tokenizer,
                                                  absl::string_view text) {
  constexpr absl::string_view kBefore = "\n";
  const EncodeOptions options{.add_bos = false, .add_eos = false, .parse_special = false};
  absl::StatusOr<std::vector<int32_t>> before = tokenizer.Encode(kBefore, options);
  if (!before.ok()) return before.status();
  absl::StatusOr<std::vector<int32_t>> whole =
      tokenizer.Encode(absl::StrCat(kBefore, text), options);
  if (!whole.ok()) return whole.status();
  if (whole->size() <= before->size() ||
      !std::equal(before->begin(), before->end(), whole->begin())) {
    return tokenizer.Encode(text, options);  // the vocabulary joins the two
  }
  whole->erase(whole->begin(), whole->begin() + static_cast<ptrdiff_t>(before->size()));
  return whole;
}

// Each word as it stands inside a word and as it begins one: without and with a space before it.
absl::Status EncodeBadWords(const v1::GenerateRequest& request, const ServedModel& model,
                            worker::v1::Sampling* sampling) {
  for (int i = 0; i < request.bad_words_size(); ++i) {
    const absl::string_view word = request.bad_words(i);
    const absl::string_view bare = absl::StripLeadingAsciiWhitespace(word);
    std::vector<std::string> forms = {std::string(bare.empty() ? word : bare)};
    if (!bare.empty()) forms.push_back(absl::StrCat(" ", bare));
    for (const std::string& form : forms) {
      absl::StatusOr<std::vector<int32_t>> ids = EncodeInside(*model.tokenizer, form);
      if (!ids.ok()) return FieldError(absl::StrCat("bad_words[", i, "]"), ids.status().message());
      if (ids->empty()) continue;
      sampling->add_bad_words()->mutable_ids()->Add(ids->begin(), ids->end());
    }
  }
  return absl::OkStatus();
}

// What ends an answer in a chat although the model's end of sequence does not stand for it.
absl::Status AddChatStops(const ServedModel& model, ValidGenerate* valid) {
  for (const absl::string_view stop : model.chat_template->default_stops()) {
    if (const std::optional<int32_t> id = model.tokenizer->FindSpecial(stop)) {
      valid->submit.add_stop_token_ids(static_cast<uint32_t>(*id));
      continue;
    }
    if (std::find(valid->stop.begin(), valid->stop.end(), stop) != valid->stop.end()) continue;
    if (valid->stop.size() == StopMatcher::kMaxStops) {
      return FieldError("stop", absl::StrCat("leaves no room for '", stop, "', which ends answers ",
                                             "in this model's chats: at most ",
                                             StopMatcher::kMaxStops - 1, " texts are allowed"));
    }
    valid->stop.emplace_back(stop);
  }
  return absl::OkStatus();
}

// FNV-1a, because every coordinator must come to the same value.
uint64_t Affinity(absl::Span<const uint32_t> ids) {
  const size_t count = std::min(kAffinityTokens, ids.size() / kBlockTokens * kBlockTokens);
  if (count == 0) return 0;
  uint64_t hash = 0xcbf29ce484222325;
  for (const uint32_t id : ids.first(count)) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ ((id >> shift) & 0xFF)) * 0x100000001b3;
    }
  }
  return hash == 0 ? 1 : hash;
}

uint64_t RandomSeed() {
  thread_local absl::BitGen random;
  return absl::Uniform<uint64_t>(random);
}

void SetPrompt(const EncodedInput& input, ValidGenerate* valid) {
  valid->submit.mutable_prompt_ids()->Add(input.ids.begin(), input.ids.end());
  valid->affinity = Affinity(input.ids);
}

std::string EchoText(EncodedInput input, bool skip_special, const ServedModel& model) {
  if (!input.text.empty() || model.tokenizer == nullptr) return std::move(input.text);
  const std::vector<int32_t> ids(input.ids.begin(), input.ids.end());
  return model.tokenizer->Decode(ids, skip_special);
}

}  // namespace

absl::Status CheckModelName(const std::string& name, const ServedModel& model) {
  if (name.empty() || name == model.name) return absl::OkStatus();
  return WithReason(
      absl::NotFoundError(
          absl::StrCat("model: '", Shortened(name), "' is not served here; '", model.name, "' is")),
      reason::kModelNotFound);
}

absl::StatusOr<ValidGenerate> ParseGenerate(const v1::GenerateRequest& request,
                                            const ServedModel& model, uint32_t context_length) {
  if (absl::Status status = CheckModelName(request.model(), model); !status.ok()) return status;
  ValidGenerate valid;
  if (absl::Status status = ReadFields(request, model, &valid); !status.ok()) return status;
  if (absl::Status status = CheckTextFieldsHaveTokenizer(request, model); !status.ok()) {
    return status;
  }
  absl::StatusOr<EncodedInput> input =
      EncodeInput(InputFieldsOf(request), model, {.min = 1, .max = context_length - 1});
  if (!input.ok()) return input.status();
  worker::v1::Submit& submit = valid.submit;
  if (absl::Status status = EncodeBadWords(request, model, submit.mutable_sampling());
      !status.ok()) {
    return status;
  }
  if (request.has_chat() && !request.ignore_eos()) {
    if (absl::Status status = AddChatStops(model, &valid); !status.ok()) return status;
  }
  SetPrompt(*input, &valid);
  const uint32_t room = context_length - static_cast<uint32_t>(input->ids.size());
  submit.set_max_tokens(std::min(submit.max_tokens(), room));
  submit.set_min_tokens(std::min(submit.min_tokens(), submit.max_tokens()));
  submit.mutable_sampling()->set_seed(request.has_seed() ? request.seed() : RandomSeed());
  if (request.echo()) valid.echo = EchoText(*std::move(input), valid.skip_special_tokens, model);
  return valid;
}

absl::StatusOr<ValidGenerate> ParseScore(const v1::ScoreRequest& request, const ServedModel& model,
                                         uint32_t context_length) {
  if (absl::Status status = CheckModelName(request.model(), model); !status.ok()) return status;
  FieldViolations violations;
  CheckUpTo("top", request.top(), 0, kMaxLogprobs, &violations);
  CheckPriority(request.priority(), &violations);
  if (!violations.empty()) return violations.ToStatus();
  absl::StatusOr<EncodedInput> input =
      EncodeInput(InputFieldsOf(request), model, {.min = 1, .max = context_length});
  if (!input.ok()) return input.status();
  ValidGenerate valid;
  valid.submit.set_max_tokens(0);
  valid.submit.set_prompt_logprobs(request.top());
  valid.submit.set_priority(request.priority());
  worker::v1::Sampling& sampling = *valid.submit.mutable_sampling();
  sampling.set_top_p(1);
  sampling.set_typical_p(1);
  sampling.set_repetition_penalty(1);
  SetPrompt(*input, &valid);
  return valid;
}

absl::StatusOr<EncodedInput> ParseTokenize(const v1::TokenizeRequest& request,
                                           const ServedModel& model) {
  if (absl::Status status = CheckModelName(request.model(), model); !status.ok()) return status;
  return EncodeInput(InputFieldsOf(request), model, TokenBounds());
}

absl::Status CheckDetokenize(const v1::DetokenizeRequest& request, const ServedModel& model) {
  if (absl::Status status = CheckModelName(request.model(), model); !status.ok()) return status;
  if (model.tokenizer == nullptr) return NoTokenizerError("token_ids", model);
  FieldViolations violations;
  CheckTokenIds("token_ids", request.token_ids(), std::numeric_limits<int>::max(),
                model.vocabulary_size, &violations);
  return violations.ToStatus();
}

}  // namespace marcoro
