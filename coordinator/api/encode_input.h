// The input of a request — text, ids or a chat — as token ids.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/api/served_model.h"
#include "marcoro/v1/inference.pb.h"

namespace marcoro {

// The `input` of any request, with the fields that say how to read it. Exactly one of the first
// three is set, or none.
struct InputFields {
  const std::string* prompt = nullptr;
  const v1::TokenIds* token_ids = nullptr;
  const v1::Chat* chat = nullptr;
  std::optional<bool> add_bos;
  bool parse_special_tokens = true;
};

template <typename Request>
InputFields InputFieldsOf(const Request& request) {
  InputFields fields;
  if (request.has_prompt()) fields.prompt = &request.prompt();
  if constexpr (requires { request.token_ids().ids(); }) {
    if (request.has_token_ids()) fields.token_ids = &request.token_ids();
  }
  if (request.has_chat()) fields.chat = &request.chat();
  if (request.has_add_bos()) fields.add_bos = request.add_bos();
  if (request.has_parse_special_tokens()) {
    fields.parse_special_tokens = request.parse_special_tokens();
  }
  return fields;
}

struct EncodedInput {
  std::vector<uint32_t> ids;
  // The prompt as given, or the text that the template made of a chat; empty for ids.
  std::string text;
  // The field that the input came from: "prompt", "token_ids.ids" or "chat.messages".
  absl::string_view field;
};

// How many tokens an input may have.
struct TokenBounds {
  size_t min = 0;
  size_t max = std::numeric_limits<size_t>::max();
};

// INVALID_ARGUMENT naming the field if the input is missing, holds an id outside the vocabulary, or
// has too few or too many tokens; FAILED_PRECONDITION if the model lacks the tokenizer or chat
// template it needs.
absl::StatusOr<EncodedInput> EncodeInput(const InputFields& input, const ServedModel& model,
                                         const TokenBounds& bounds);

// FAILED_PRECONDITION: the model has no tokenizer, so that `field` means nothing to it.
absl::Status NoTokenizerError(absl::string_view field, const ServedModel& model);

}  // namespace marcoro
