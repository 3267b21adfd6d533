#include "coordinator/api/encode_input.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/api/errors.h"

namespace marcoro {
namespace {

absl::Status TooLongError(absl::string_view field, absl::string_view tokens, size_t max_tokens) {
  return FieldError(
      field, absl::StrCat("has ", tokens, " tokens, but only ", max_tokens, " fit the context"));
}

// Refuses what cannot fit before it is tokenized. Twice the least number of tokens, because special
// tokens may swallow white space.
absl::Status CheckTextLength(absl::string_view field, absl::string_view text,
                             const Tokenizer& tokenizer, size_t max_tokens) {
  const size_t least = text.size() / tokenizer.vocabulary().longest_token();
  if (least / 2 <= max_tokens) return absl::OkStatus();
  return TooLongError(field, absl::StrCat("at least ", least / 2), max_tokens);
}

// The ids of a text or chat that the tokenizer has encoded; its errors are about the field.
absl::StatusOr<EncodedInput> Encoded(absl::string_view field, std::string text,
                                     const absl::StatusOr<std::vector<int32_t>>& ids) {
  if (!ids.ok()) return FieldError(field, ids.status().message());
  return EncodedInput{{ids->begin(), ids->end()}, std::move(text), field};
}

absl::StatusOr<EncodedInput> EncodePrompt(const InputFields& input, const ServedModel& model,
                                          size_t max_tokens) {
  constexpr absl::string_view kField = "prompt";
  if (model.tokenizer == nullptr) return NoTokenizerError(kField, model);
  const std::string& text = *input.prompt;
  if (absl::Status status = CheckTextLength(kField, text, *model.tokenizer, max_tokens);
      !status.ok()) {
    return status;
  }
  const EncodeOptions options{.add_bos = input.add_bos,
                              .add_eos = std::nullopt,
                              .parse_special = input.parse_special_tokens};
  return Encoded(kField, text, model.tokenizer->Encode(text, options));
}

absl::StatusOr<EncodedInput> EncodeTokenIds(const v1::TokenIds& token_ids,
                                            const ServedModel& model) {
  constexpr absl::string_view kField = "token_ids.ids";
  FieldViolations violations;
  for (int i = 0; i < token_ids.ids_size(); ++i) {
    if (token_ids.ids(i) < model.vocabulary_size) continue;
    violations.Add(
        absl::StrCat(kField, "[", i, "]"),
        absl::StrCat("token ids must be below ", model.vocabulary_size, ", is ", token_ids.ids(i)));
  }
  if (!violations.empty()) return violations.ToStatus();
  return EncodedInput{{token_ids.ids().begin(), token_ids.ids().end()}, "", kField};
}

absl::StatusOr<EncodedInput> EncodeChatMessages(const v1::Chat& chat, const ServedModel& model,
                                                size_t max_tokens) {
  constexpr absl::string_view kField = "chat.messages";
  if (model.tokenizer == nullptr) return NoTokenizerError(kField, model);
  if (model.chat_template == nullptr) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "chat: model ", model.name,
            " has no chat template; start the server with --chat-template=NAME, or send a prompt")),
        reason::kNoChatTemplate);
  }
  FieldViolations violations;
  if (chat.messages().empty()) violations.Add(kField, "must hold at least one message");
  std::vector<ChatMessage> messages;
  for (int i = 0; i < chat.messages_size(); ++i) {
    const v1::Message& message = chat.messages(i);
    if (message.role().empty()) {
      violations.Add(absl::StrCat(kField, "[", i, "].role"), "must not be empty");
    }
    messages.push_back({message.role(), message.content()});
  }
  if (!violations.empty()) return violations.ToStatus();
  absl::StatusOr<RenderedChat> rendered = model.chat_template->Render(
      messages, !chat.has_add_generation_prompt() || chat.add_generation_prompt(),
      model.tokenizer->bos_text(), model.tokenizer->eos_text());
  if (!rendered.ok()) return FieldError(kField, rendered.status().message());
  if (absl::Status status = CheckTextLength(kField, rendered->text, *model.tokenizer, max_tokens);
      !status.ok()) {
    return status;
  }
  const absl::StatusOr<std::vector<int32_t>> ids = EncodeChat(*model.tokenizer, *rendered);
  return Encoded(kField, std::move(rendered->text), ids);
}

}  // namespace

absl::Status NoTokenizerError(absl::string_view field, const ServedModel& model) {
  return WithReason(
      absl::FailedPreconditionError(absl::StrCat(
          field, ": model ", model.name, " has no tokenizer; send token_ids instead of text")),
      reason::kNoTokenizer);
}

absl::StatusOr<EncodedInput> EncodeInput(const InputFields& input, const ServedModel& model,
                                         const TokenBounds& bounds) {
  absl::StatusOr<EncodedInput> encoded =
      FieldError("input", "one of prompt, token_ids or chat is required");
  if (input.prompt != nullptr) encoded = EncodePrompt(input, model, bounds.max);
  if (input.token_ids != nullptr) encoded = EncodeTokenIds(*input.token_ids, model);
  if (input.chat != nullptr) encoded = EncodeChatMessages(*input.chat, model, bounds.max);
  if (!encoded.ok()) return encoded;
  if (encoded->ids.size() < bounds.min) {
    return FieldError(encoded->field, "is empty: at least one token is needed");
  }
  if (encoded->ids.size() > bounds.max) {
    return TooLongError(encoded->field, absl::StrCat(encoded->ids.size()), bounds.max);
  }
  return encoded;
}

}  // namespace marcoro
